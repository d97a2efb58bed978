"""Commands of the tool, run in this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

from compressor.cli import main
from compressor.cli.foreign_errors import is_panic
from tests.fuzz.kind import Finished
from tests.integration.command import command_here


def commanded(*words: object) -> Finished:
    """Run `compress-export` with these words."""
    done = command_here(*words)
    return Finished(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def called(work: Callable[[], object]) -> Finished:
    """Run a part of a command, its errors made messages and exit codes as a command's are."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            work()
        except BaseException as error:
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            code = main._fail(error, debug=False)
    return Finished(exit_code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())
