"""Building ONNX graphs with a KV cache through onnxruntime-genai's model builder, as a subprocess.

A subprocess, because the builder prints, reads the command line and keeps much memory; and offline,
because everything it needs lies in the checkpoint's directory. It builds into a directory of its own,
so that one orphaned by a kill cannot write among the files of the run that follows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compressor.core.errors import DependencyError, VerificationError
from compressor.core.resource_errors import as_resource_error, killed_child

GRAPH_FILE = "model.onnx"
GENAI_CONFIG_FILE = "genai_config.json"
_BUILDER = "onnxruntime_genai.models.builder"
_WORK_PREFIX = ".build-"
_NUM_LOG_LINES = 12


def build_onnx(checkpoint: Path, out_dir: Path, *, precision: str, trust_remote_code: bool = False) -> None:
    """Build a checkpoint's graph for the CPU: `model.onnx`, its data, `genai_config.json`, tokenizer.

    Files of these names in `out_dir` are replaced. The precision of the weights is fp32, fp16, or int4
    (blockwise round-to-nearest, the builder's defaults).

    Raises:
        DependencyError: when the builder cannot be imported.
        VerificationError: when it fails, with the last lines it wrote.
    """
    for stale in out_dir.glob(f"{_WORK_PREFIX}*"):
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=out_dir))
    try:
        built = work / "graph"
        _run(_command(checkpoint, built, work / "cache", precision, trust_remote_code=trust_remote_code))
        for name in (GRAPH_FILE, GENAI_CONFIG_FILE):
            if not (built / name).is_file():
                raise VerificationError("the model builder left no file", where=name)
        for path in sorted(built.iterdir()):
            path.replace(out_dir / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_graph(directory: Path) -> Any:
    """The graph in a directory, without its weights' data; VerificationError when it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError

    file = directory / GRAPH_FILE
    if not file.is_file():
        raise VerificationError("the graph is missing", where=str(file))
    try:
        return onnx.load(file, load_external_data=False)
    except DecodeError as error:
        raise VerificationError("the graph is corrupt", where=str(file), found=error) from error


def _command(
    checkpoint: Path, built: Path, cache: Path, precision: str, *, trust_remote_code: bool
) -> list[str]:
    options = ["hf_token=false", f"hf_remote={'true' if trust_remote_code else 'false'}"]
    return [
        *(sys.executable, "-m", _BUILDER),
        *("-i", str(checkpoint), "-o", str(built), "-c", str(cache)),
        *("-p", precision, "-e", "cpu", "--extra_options", *options),
    ]


def _run(command: list[str]) -> None:
    # Equal checkpoints are to give equal graphs: no order may hang on the hashes of strings, and the builder
    # may not write the commit of a repository that happens to hold the virtual environment into them.
    fixed = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    environment = {**os.environ, **fixed, "GIT_DIR": os.devnull}
    done = subprocess.run(  # noqa: S603 - this interpreter, and paths as single arguments
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        # Progress bars end their lines with a carriage return, which splitlines cuts at too.
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        message = "\n".join(lines[-_NUM_LOG_LINES:])
        if "ModuleNotFoundError" in message or "ImportError" in message:
            raise DependencyError(
                "onnxruntime-genai's model builder cannot be imported",
                where="export",
                found=message,
                hint="compress-export doctor shows the versions that work together",
            )
        told = (as_resource_error(RuntimeError(line)) for line in reversed(lines))
        if resource := next(filter(None, told), killed_child("the model builder", done.returncode)):
            raise resource
        raise VerificationError(
            "onnxruntime-genai's model builder failed", where=f"exit code {done.returncode}", found=message
        )
