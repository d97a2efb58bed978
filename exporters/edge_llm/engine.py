"""Building the device's engine with TensorRT-Edge-LLM's `llm_build`, or leaving its command.

It is compiled on the device and reads the graph. It has been seen to end well without an engine: only an
engine file that is there, and can hold the graph's weights, counts.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from compressor.core.console import Console
from compressor.core.errors import VerificationError
from compressor.recipe.recipe import EdgeLLM
from exporters.edge_llm.reader import GRAPH_DIRECTORY
from exporters.onnx.builder import GRAPH_FILE
from exporters.tensorrt_llm.engine import LOG_FILE, SCRIPT_FILE, builder_failure
from exporters.verification.record import Engine

BUILDER, ENGINE, ENGINE_FILE = "llm_build", "engine", "llm.engine"
_PLUGIN = "EDGELLM_PLUGIN_PATH"
# Weights that are the same may be stored once; what has no weights at all is a few kilobytes.
_SMALLEST_PART_OF_WEIGHTS = 0.25


def build_command(settings: EdgeLLM) -> list[str]:
    """The command that builds an export's engine, to be run in the export's directory."""
    return [
        *(BUILDER, "--onnxDir", GRAPH_DIRECTORY, "--engineDir", ENGINE),
        *("--maxBatchSize", str(settings.max_batch_size)),
        *("--maxInputLen", str(settings.max_input_len)),
        *("--maxKVCacheCapacity", str(settings.max_kv_cache)),
    ]


def make_engine(out_dir: Path, settings: EdgeLLM, console: Console) -> Engine:
    """Build the engine where the builder is; else leave the command as a script.

    Raises:
        VerificationError: when the builder fails, or leaves no engine.
    """
    command = build_command(settings)
    engine = Engine(built=False, commands={ENGINE: shlex.join(command)})
    path = shutil.which(BUILDER)
    if path is None:
        (out_dir / SCRIPT_FILE).write_text(_script(command), encoding="utf-8")
        reason = f"no {BUILDER} on PATH"
        console.info(f"engine not built: {reason}; {SCRIPT_FILE} builds it on the device")
        return engine.model_copy(update={"reason": reason, "script": SCRIPT_FILE})
    _build([path, *command[1:]], out_dir, console)
    _check_engine(out_dir)
    return engine.model_copy(update={"built": True})


def _build(command: list[str], out_dir: Path, console: Console) -> None:
    """Run the builder in `out_dir`; its log stays beside the engine."""
    directory = out_dir / ENGINE
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    console.info(f"building {ENGINE} with {BUILDER}")
    with (directory / LOG_FILE).open("w", encoding="utf-8") as log:
        done = subprocess.run(  # noqa: S603 - an executable found on PATH, arguments as a list
            command, cwd=out_dir, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    text = (directory / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    if done.returncode:
        hint = f"the whole log: {directory / LOG_FILE}; {_PLUGIN} must name the plugin's library"
        raise builder_failure(BUILDER, ENGINE, done.returncode, text, hint=hint)


def _check_engine(out_dir: Path) -> None:
    """Believe in an engine only where its file is, and can hold the graph's weights."""
    engine, data = out_dir / ENGINE / ENGINE_FILE, out_dir / GRAPH_DIRECTORY / f"{GRAPH_FILE}.data"
    size = engine.stat().st_size if engine.is_file() else 0
    weights = data.stat().st_size
    if size < _SMALLEST_PART_OF_WEIGHTS * weights:
        raise VerificationError(
            "the engine builder succeeded but left no engine",
            where=f"{ENGINE}/{ENGINE_FILE}",
            expected=f"at least {_SMALLEST_PART_OF_WEIGHTS:.0%} of the graph's {weights:,} bytes of weights",
            found=f"{size:,} bytes",
            hint=f"the whole log: {out_dir / ENGINE / LOG_FILE}",
        )


def _script(command: list[str]) -> str:
    """What to run on the device, which says so where the builder leaves no engine."""
    engine = f"{ENGINE}/{ENGINE_FILE}"
    lines = [
        "#!/bin/sh",
        f"# Builds the engine on the device; needs TensorRT-Edge-LLM's {BUILDER} on PATH, and {_PLUGIN} to",
        "# name its libNvInfer_edgellm_plugin.so.",
        "set -eu",
        'cd "$(dirname "$0")"',
        f"mkdir -p {ENGINE}",
        shlex.join(command),
        f'test -s {engine} || {{ echo "{BUILDER} left no {engine}" >&2; exit 1; }}',
    ]
    return "\n".join(lines) + "\n"
