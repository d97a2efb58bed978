"""NVIDIA's converter `tensorrt-edgellm`, a subprocess in a Python environment of its own.

It pins other releases than this project, so that the two do not share an environment; nothing is installed
here. It is given a checkpoint that holds no code: the converter would run a repository's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from compressor.core.console import Console
from compressor.core.errors import DependencyError, UnsupportedError, VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.core.resource_errors import as_resource_error, killed_child
from compressor.models.checkpoint import INDEX_FILE, read_config, weight_files
from compressor.models.config.portable import write_config
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.quantization.record import RECORD_FILE
from exporters.edge_llm.reader import EMBEDDING_FILE, GRAPH_DIRECTORY
from exporters.onnx.builder import GRAPH_FILE

DISTRIBUTION, SERIES = "tensorrt-edgellm", (0, 11)
OPTION = "--edge-llm-python"
INSTALL = f"pip install '{DISTRIBUTION}[export]=={SERIES[0]}.{SERIES[1]}.*'"
_MODULE = "tensorrt_edgellm.scripts.export"
_NEEDED = ("torch", "transformers", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors")
_WORK_PREFIX = ".convert-"
_PROBE_TIMEOUT_S = 120
_NUM_LOG_LINES = 12
_TEMPLATE_FILE, _TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
_NAMED_TEMPLATES = "additional_chat_templates"
_PROBE = f"""\
import importlib.metadata, importlib.util, json
try:
    version = importlib.metadata.version({DISTRIBUTION!r})
except importlib.metadata.PackageNotFoundError:
    version = None
missing = [name for name in {_NEEDED!r} if importlib.util.find_spec(name) is None]
print(json.dumps({{"version": version, "missing": missing}}))
"""


@dataclass(frozen=True, kw_only=True)
class Converter:
    """A Python that has the converter, and the converter's version."""

    python: str
    version: str


def find_converter(python: str | None) -> Converter | str:
    """The converter in the environment of this Python, or why there is none."""
    if python is None:
        return f"no {OPTION} is given"
    path = shutil.which(python)
    if path is None:
        return f"{python} is not there, or is not executable"
    found = _probe(path)
    if isinstance(found, str):
        return found
    version, missing = found.get("version"), found.get("missing")
    if version is None:
        return f"{python} has no {DISTRIBUTION}"
    try:
        series = Version(str(version)).release[:2]
    except InvalidVersion:
        series = ()
    if series != SERIES:
        return f"{python} has {DISTRIBUTION} {version}, whose graphs are not known here"
    if missing:
        return (
            f"{python} has {DISTRIBUTION} {version} without its extra `export`: {', '.join(missing)} missing"
        )
    return Converter(python=path, version=str(version))


def require_converter(python: str | None) -> Converter:
    """The converter; a DependencyError that says how to get it where there is none."""
    found = find_converter(python)
    if isinstance(found, str):
        raise DependencyError(
            "TensorRT-Edge-LLM's converter is not here",
            where=OPTION,
            expected=f"a Python that has {DISTRIBUTION}[export] {SERIES[0]}.{SERIES[1]}",
            found=found,
            hint=f"`make edge-env` makes one in .venv-edge, or run `{INSTALL}` in an environment of its own; "
            f"then add {OPTION} ENVIRONMENT/bin/python",
        )
    return found


def require_chat_template(directory: Path) -> None:
    """Refuse (UnsupportedError) a checkpoint without one chat template: the converter fails at its end."""
    settings = directory / _TOKENIZER_CONFIG
    beside = settings.is_file() and read_json_mapping(settings, what=_TOKENIZER_CONFIG).get("chat_template")
    named = (directory / _NAMED_TEMPLATES).is_dir()
    if named or not (beside or (directory / _TEMPLATE_FILE).is_file()):
        raise UnsupportedError(
            "TensorRT-Edge-LLM needs one chat template",
            where=str(directory),
            expected=f"{_TEMPLATE_FILE}, or chat_template in {_TOKENIZER_CONFIG}, and no {_NAMED_TEMPLATES}/",
            found="several" if named else "none",
            hint="add the template that the model's prompts are to be written with, or choose another format",
        )


def convert(checkpoint: Path, tokenizer: Path, out_dir: Path, converter: Converter, console: Console) -> None:
    """Convert a checkpoint, 16-bit or unified FP8, into `out_dir/llm`, with the files of a `tokenizer`.

    Raises:
        VerificationError: when the converter fails, with its last lines, or leaves no graph.
        ResourceError: when memory or disk ended it.
    """
    for stale in out_dir.glob(f"{_WORK_PREFIX}*"):
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=out_dir))
    try:
        _stage(checkpoint, tokenizer, work / "checkpoint")
        _run(converter, work / "checkpoint", work / "made", console)
        made = work / "made" / GRAPH_DIRECTORY
        for name in (GRAPH_FILE, f"{GRAPH_FILE}.data", EMBEDDING_FILE):
            if not (made / name).is_file():
                raise VerificationError(
                    "the converter succeeded but left no file", where=f"{GRAPH_DIRECTORY}/{name}"
                )
        _drop_traces(made / GRAPH_FILE)
        made.replace(out_dir / GRAPH_DIRECTORY)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _probe(path: str) -> dict[str, Any] | str:
    """What the environment of a Python holds, or why it does not say."""
    try:
        done = subprocess.run(  # noqa: S603 - an executable that the user names, fixed arguments
            [path, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
            env=_environment(),
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return f"{path} does not run as a Python: {error}"
    return found


def _stage(checkpoint: Path, tokenizer: Path, directory: Path) -> None:
    """The checkpoint as the converter sees it: linked weights, a portable config, a tokenizer; no code."""
    directory.mkdir()
    write_config(directory, read_config(checkpoint))
    copy_tokenizer(tokenizer, directory)
    beside = [checkpoint / name for name in (INDEX_FILE, RECORD_FILE)]
    for file in [*weight_files(checkpoint), *filter(Path.is_file, beside)]:
        (directory / file.name).symlink_to(file.resolve())


def _run(converter: Converter, checkpoint: Path, made: Path, console: Console) -> None:
    console.info(f"converting with {DISTRIBUTION} {converter.version}")
    done = subprocess.run(  # noqa: S603 - an executable that the user names, arguments as a list
        [converter.python, "-m", _MODULE, str(checkpoint), str(made)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(),
        check=False,
    )
    for line in done.stdout.splitlines():
        console.detail(f"  {DISTRIBUTION}: {line}")
    if not done.returncode:
        return
    if resource := as_resource_error(RuntimeError(done.stdout)) or killed_child(
        DISTRIBUTION, done.returncode
    ):
        raise resource
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    raise VerificationError(
        "the converter failed",
        where=f"{DISTRIBUTION} {converter.version}: exit code {done.returncode}",
        found="\n".join(lines[-_NUM_LOG_LINES:]),
    )


def _environment() -> dict[str, str]:
    """The environment of the subprocess: nothing of this one's packages, no network, no order by hashes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONNOUSERSITE": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}


def _drop_traces(file: Path) -> None:
    """Take out of the graph its exporter's notes: lines of source, with paths of this machine."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    noted = (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer)
    for entry in (*noted, *model.graph.input, *model.graph.output):
        del entry.metadata_props[:]
        entry.doc_string = ""
    file.write_bytes(model.SerializeToString(deterministic=True))
