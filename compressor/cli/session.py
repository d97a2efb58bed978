"""What every command does around its work: quiet libraries, a clean stdout, results at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from compressor.core.console import Console
from compressor.core.escaping import printable
from compressor.core.hardware import resolve_device
from compressor.core.processes import is_main, joined


@contextlib.contextmanager
def work(flags: dict[str, Any]) -> Iterator[Console]:
    """Run a command's work: what libraries print goes to stderr, their chatter is silenced."""
    console = Console(quiet=flags["quiet"] or not is_main(), verbose=flags["verbose"])
    # ONNX Runtime keeps a device id and an event log in the user's cache unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not flags["verbose"]:
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)
    device = resolve_device(flags.get("device") or "auto")
    with joined(device), contextlib.redirect_stdout(sys.stderr):
        _silence_progress_bars()
        yield console


def emit(result: Mapping[str, object], flags: dict[str, Any], text: str) -> None:
    """Print a result on stdout: one JSON document with `--json`, else text; once for all processes."""
    if not is_main():
        return
    click.echo(json.dumps(result, indent=2, default=str) if flags["as_json"] else printable(text))


def default_output(model_name: str, target: str | None, *, fp8: bool) -> Path:
    """`./llama3.1-8b-4b-fp8` for `llama3.1-8b --target 4b --fp8`; a family's targets follow each other."""
    named = (target or "shape").replace("%", "pct").replace(",", "-").replace(" ", "")
    parts = [model_name, named, *(["fp8"] if fp8 else [])]
    return Path("-".join(parts))


def _silence_progress_bars() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
