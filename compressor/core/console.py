"""What a person sees while work is done: messages of the logger `compressor`, and progress.

Nothing is printed unless somebody asks: a program that uses this package gets messages through `logging`,
and `shown_on_stderr` adds the handler of the command line, with bars on a terminal and quiet lines elsewhere.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from compressor.core.escaping import printable
from compressor.core.interruption import raise_if_asked
from compressor.core.processes import is_main

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress

LINE_INTERVAL_S = 15.0
LOGGER = logging.getLogger("compressor")
LOGGER.addHandler(logging.NullHandler())


class Tick:
    """Advances one progress display; on a pipe it prints a line at most every 15 seconds."""

    def __init__(self, console: Console, description: str, total: int, progress: Progress | None) -> None:
        self._console, self._description, self._total = console, description, total
        self._progress = progress
        self._task = progress.add_task(description, total=total) if progress else None
        self._done, self._last_line = 0, time.monotonic()

    def __call__(self, note: str = "", *, done: int | None = None) -> None:
        """Count one more unit (or set the count to `done`), with an optional note behind it.

        Raises:
            KeyboardInterrupt: when a signal asked for the end and work went on.
        """
        raise_if_asked()
        self._done = self._done + 1 if done is None else done
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, completed=self._done, description=f"{self._description} {note}".rstrip()
            )
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            self._console.info(f"  {self._description} {self._done}/{self._total} {note}".rstrip())


@dataclass
class Console:
    """Messages and progress of some work; its warnings are kept for the manifest."""

    warnings: list[str] = field(default_factory=list)

    def info(self, message: str) -> None:
        """A line of progress."""
        LOGGER.info("%s", message)

    def detail(self, message: str) -> None:
        """A line for those who want more of them."""
        LOGGER.debug("%s", message)

    def warn(self, message: str) -> None:
        """A warning, once for all processes; it is kept as well."""
        self.warnings.append(message)
        if is_main():
            LOGGER.warning("%s", message)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Tick]:
        """A progress bar on a terminal that shows messages, occasional messages elsewhere."""
        terminal = _terminal()
        if terminal is None:
            yield Tick(self, description, total, None)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # Notes may be another program's lines, which hold brackets.
        description_column = TextColumn("{task.description}", markup=False)
        columns = (description_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=terminal, transient=True) as progress:
            yield Tick(self, description, total, progress)


class StderrHandler(logging.Handler):
    """Shows messages on stderr; warnings are marked as such."""

    @cached_property
    def rich(self) -> RichConsole:
        """Writes on stderr, with colours on a terminal unless NO_COLOR is set."""
        from rich.console import Console as RichConsole

        return RichConsole(stderr=True, highlight=False, force_terminal=sys.stderr.isatty())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, control characters escaped."""
        message = printable(record.getMessage())
        if record.levelno >= logging.WARNING:
            sys.stderr.write(f"warning: {message}\n")
        else:
            self.rich.print(message, markup=False, soft_wrap=True)


@contextmanager
def shown_on_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Show the messages of `level` and above on stderr meanwhile, and bars where it is a terminal."""
    handler, before = StderrHandler(level), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)


def _terminal() -> RichConsole | None:
    """The terminal that progress is shown on, if it is shown on one.

    What variables such as FORCE_COLOR say is no terminal: a log would be filled with every redrawn bar.
    """
    for handler in LOGGER.handlers:
        if not isinstance(handler, StderrHandler) or handler.level > logging.INFO:
            continue
        if handler.rich.file.isatty() and not handler.rich.is_dumb_terminal:
            return handler.rich
    return None
