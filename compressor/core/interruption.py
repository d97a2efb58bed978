"""A signal that asks the program to end, and cannot get lost.

Its handler raises KeyboardInterrupt wherever the program is. In a finaliser or a callback of a library, the
interpreter reports an exception and drops it; a bare `except` of a library swallows it. The work would go on
for days: it asks again each time that it counts one more unit.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType

_was_asked = False


def end_on(signals: Iterable[signal.Signals]) -> None:
    """Let these signals interrupt the program, but for those that its parent wants ignored (`nohup`)."""
    for each in signals:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _interrupt)


def raise_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal came, whatever became of its own."""
    if _was_asked:
        raise KeyboardInterrupt


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    global _was_asked  # noqa: PLW0603 - signals are the process's
    _was_asked = True
    raise KeyboardInterrupt
