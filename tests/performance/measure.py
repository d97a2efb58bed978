"""How the bounds are measured: paired CPU time, and anonymous memory of a fresh process."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.measure.statistics import ratio_interval
from compressor.data.tokenise import TokenArray
from compressor.models.adapter import ModelAdapter
from compressor.models.source import open_checkpoint, resolve_source
from tests import assets

NUM_PAIRS = 9
_SAMPLE_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One line of the report; the value must not exceed the bound, or if not `is_upper` must reach it."""

    what: str
    measured: float
    required: float
    unit: str
    low: float | None = None
    high: float | None = None
    is_upper: bool = True

    @property
    def passes(self) -> bool:
        if self.is_upper:
            return (self.measured if self.low is None else self.low) <= self.required
        return (self.measured if self.high is None else self.high) >= self.required

    def row(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        sign, verdict = "<=" if self.is_upper else ">=", "ok" if self.passes else "MISSED"
        value = f"{self.measured:8.3f}{interval} {sign} {self.required:.3f} {self.unit}"
        return f"{self.what:<62} {value:<46} {verdict}"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median and 95 % interval of paired time ratios."""

    median: float
    low: float
    high: float

    def bound(self, what: str, *, required: float, is_upper: bool = True) -> Bound:
        found = {"measured": self.median, "low": self.low, "high": self.high}
        return Bound(what=what, required=required, unit="x", is_upper=is_upper, **found)


def real_checkpoint(scratch: Path) -> Path:
    """SmolLM2 as a safetensors checkpoint."""
    found = assets.fetch(assets.DEFAULT_DIRECTORY)
    return open_checkpoint(resolve_source(str(found.gguf)), scratch, dtype="bfloat16").path


def bare_pass(adapter: ModelAdapter, windows: TokenArray) -> None:
    with torch.no_grad():
        for window in windows:
            adapter.body(torch.from_numpy(window.astype("int64"))[None], use_cache=False)


def paired_ratio(
    baseline: Callable[[], object], candidate: Callable[[], object], *, num_pairs: int = NUM_PAIRS
) -> Ratio:
    """CPU time of `candidate` over `baseline`: nine A B B A rounds after one warm-up of each."""
    baseline()
    candidate()
    baseline_s, candidate_s = [], []
    for _ in range(num_pairs):
        times = [_cpu_time(work) for work in (baseline, candidate, candidate, baseline)]
        baseline_s.append(times[0] + times[3])
        candidate_s.append(times[1] + times[2])
    interval = ratio_interval(candidate_s, baseline_s)
    ratios = [ours / theirs for ours, theirs in zip(candidate_s, baseline_s, strict=True)]
    return Ratio(median=statistics.median(ratios), low=interval.low, high=interval.high)


def peak_memory_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """Peak anonymous memory of `work`, a function of a module, in a fresh process.

    It prepares what is not to be counted, then enters `counted_memory()` around the rest.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*arguments, sender))
    process.start()
    peak = int(receiver.recv())
    process.join()
    return peak


@contextlib.contextmanager
def counted_memory(sender: Any) -> Iterator[None]:
    """Send the peak of anonymous memory while the context lasts, less the amount at its start."""
    gc.collect()
    baseline = _anonymous_bytes()
    peak, done = baseline, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_S):
            peak = max(peak, _anonymous_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        peak = max(peak, _anonymous_bytes())
        done.set()
        thread.join()
        sender.send(peak - baseline)


def _cpu_time(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")
