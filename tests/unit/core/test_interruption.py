"""Signals that a library swallows still end the work."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from compressor.core import interruption
from compressor.core.console import Console


@pytest.fixture(autouse=True)
def _own_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interruption, "_was_asked", False)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


class Finalised:
    """What it is told as it is deleted cannot reach anybody."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_was_dropped_ends_the_work_at_its_next_unit() -> None:
    interruption.end_on([signal.SIGTERM])
    with Console().progress("counting", 3) as tick:
        tick()
        Finalised()
        with pytest.raises(KeyboardInterrupt):
            tick()


def test_a_signal_that_nothing_swallows_interrupts_at_once() -> None:
    interruption.end_on([signal.SIGTERM])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_what_the_parent_wants_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interruption.end_on([signal.SIGHUP])
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.raise_signal(signal.SIGHUP)
    with Console().progress("counting", 1) as tick:
        tick()
