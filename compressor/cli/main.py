"""The command line: `compress-export MODEL ...` is `compress-export run MODEL ...`.

Commands live in one file each and import what is heavy only when they run, so `--help` is instant.
This is the one place where errors become messages and exit codes.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click
from click_default_group import DefaultGroup

from compressor import __version__
from compressor.cli.bench import bench
from compressor.cli.distill import distill
from compressor.cli.doctor import doctor
from compressor.cli.evaluate import evaluate
from compressor.cli.export import export
from compressor.cli.generate import generate
from compressor.cli.plan import plan
from compressor.cli.prune import prune
from compressor.cli.quantize import quantize
from compressor.cli.run import run
from compressor.cli.sparsify import sparsify
from compressor.cli.verify import verify
from compressor.errors import INTERRUPTED_EXIT_CODE, CompressExportError, ResourceError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=DefaultGroup, default="run", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="compress-export")
def cli() -> None:
    """Prune and distill a language model to a target size, export it, and prove the speed-up.

    \b
    compress-export llama3.1-8b --target 4b --fp8      the whole road
    compress-export plan llama3.1-8b --target 4b       what it would do; no network, no weights
    compress-export MODEL ...                          the same as: compress-export run MODEL ...

    Every stage is also a command of its own. Results go to stdout, everything else to stderr.

    \b
    Exit codes: 0 done, 1 unexpected, 2 usage, 3 unsupported, 4 missing dependency, 5 memory or disk,
    6 accuracy gate, 7 speed gate, 8 verification failed or corrupt weights, 9 network or
    authorisation, 130 interrupted (run the same command again to resume).
    """  # noqa: D301 - the \b must reach click as one character


for _command in (
    *(run, plan, prune, generate, distill, sparsify, quantize),
    *(export, bench, evaluate, verify, doctor),
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Entry point: run, and turn every error into one message and its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    debug = "--debug" in arguments
    try:
        cli.main(arguments, prog_name="compress-export", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; run the same command again to resume", err=True)
        return INTERRUPTED_EXIT_CODE
    except CompressExportError as error:
        return _fail(error, debug=debug)
    except Exception as error:  # noqa: BLE001 - the one place where anything becomes an exit code
        return _fail(_resource_error(error) or error, debug=debug)
    return 0


def _fail(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, CompressExportError):
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    click.echo(f"unexpected error: {type(error).__name__}: {error}\n  try: the same with --debug", err=True)
    return 1


def _resource_error(error: Exception) -> ResourceError | None:
    """Memory and disk errors of any library as ours."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ResourceError("out of memory", found=error, hint="smaller batches or windows")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM):
        where = str(error.filename)
        return ResourceError("the disk refuses to be written", where=where, found=error.strerror)
    return None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
