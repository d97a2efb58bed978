"""What every command does around its work: quiet libraries, a clean stdout, results at the end."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click

from compressor.core.console import Console, shown_on_stderr
from compressor.core.escaping import printable
from compressor.core.hardware import resolve_device
from compressor.core.processes import is_main, joined


@dataclass(frozen=True, kw_only=True)
class Show:
    """What a command prints."""

    as_json: bool
    quiet: bool
    verbose: bool


def showing(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of what it prints, as an argument `show`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors on stderr.")
    @click.option("-v", "--verbose", is_flag=True, help="Print more details on stderr.")
    @click.option("--debug", is_flag=True, help="Also print the traceback of an error.")
    @functools.wraps(function)
    def command(*, as_json: bool, quiet: bool, verbose: bool, debug: bool, **flags: object) -> None:
        del debug  # main reads it from the command line: an error may come before a command is found
        function(show=Show(as_json=as_json, quiet=quiet, verbose=verbose), **flags)

    return command


@contextlib.contextmanager
def work(show: Show, device: str = "auto") -> Iterator[Console]:
    """Run a command's work: what libraries print goes to stderr, their chatter is silenced."""
    # ONNX Runtime keeps a device id and an event log in the user's cache unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    level = logging.DEBUG if show.verbose else logging.INFO
    if show.quiet or not is_main():
        level = logging.WARNING
    with (
        contextlib.nullcontext() if show.verbose else _libraries_silenced(),
        joined(resolve_device(device)),
        contextlib.redirect_stdout(sys.stderr),
        shown_on_stderr(level),
    ):
        _silence_progress_bars()
        yield Console()


@contextlib.contextmanager
def _libraries_silenced() -> Iterator[None]:
    libraries = logging.getLogger()
    before = libraries.level
    warnings.simplefilter("ignore")
    libraries.setLevel(logging.ERROR)
    try:
        yield
    finally:
        libraries.setLevel(before)


def emit(result: object, show: Show, text: str) -> None:
    """Print a result on stdout: one JSON document with `--json`, else text; once for all processes."""
    if not is_main():
        return
    click.echo(json.dumps(result, indent=2, default=str) if show.as_json else printable(text))


def _silence_progress_bars() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
