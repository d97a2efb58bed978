"""Everything a person sees while a command works: on stderr, bars on a terminal, quiet lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from compressor.core.escaping import printable
from compressor.core.processes import is_main

LINE_INTERVAL_S = 15.0


class Tick:
    """Advances one progress display; on a pipe it prints a line at most every 15 seconds."""

    def __init__(self, console: Console, description: str, total: int, progress: Progress | None) -> None:
        self._console, self._description, self._total = console, description, total
        self._progress = progress
        self._task = progress.add_task(description, total=total) if progress else None
        self._done, self._last_line = 0, time.monotonic()

    def __call__(self, note: str = "", *, done: int | None = None) -> None:
        """Count one more unit (or set the count to `done`), with an optional note behind it."""
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
    """Messages and progress on stderr; warnings are kept for the manifest."""

    quiet: bool = False
    verbose: bool = False
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rich = RichConsole(stderr=True, quiet=self.quiet, highlight=False)

    def info(self, message: str) -> None:
        """A line of progress."""
        self.rich.print(printable(message), markup=False, soft_wrap=True)

    def detail(self, message: str) -> None:
        """A line for `-v` only."""
        if self.verbose:
            self.info(message)

    def warn(self, message: str) -> None:
        """A warning: shown even when quiet, and kept."""
        self.warnings.append(message)
        if is_main():
            sys.stderr.write(f"warning: {printable(message)}\n")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Tick]:
        """A progress bar on a terminal, occasional lines elsewhere."""
        if self.quiet or not self.rich.is_terminal:
            yield Tick(self, description, total, None)
            return
        # Notes may be another program's lines, which hold brackets.
        description_column = TextColumn("{task.description}", markup=False)
        columns = (description_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.rich, transient=True) as progress:
            yield Tick(self, description, total, progress)
