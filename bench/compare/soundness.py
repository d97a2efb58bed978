"""Whether a `results.json` can be a measurement at all: what a schema cannot say of its numbers.

A gate reads files that people keep, move and edit. It judges by the samples, so they must be there, be
positive, and be what the medians and ratios beside them were computed from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from bench.measure.statistics import MIN_SAMPLES, median
from bench.report.results import Absent, ArmCell, CellResult, Interval, Results, Summary

# Metrics that every measured cell has, and that the gate reads.
REQUIRED_METRICS = ("latency_s", "output_tokens_per_s")
_LARGEST_SIZE = 1 << 53  # of a length, a batch or a count
# Of any rate or duration in SI units; what is measured is positive.
_SMALLEST, _LARGEST = 1e-15, 1e18
_RELATIVE = 1e-6  # far above rounding, far below what matters to a gate


def complaint_about(results: Results) -> str | None:
    """The first thing that no benchmark could have written, as `where: what`; None for a sound file."""
    return next(_complaints(results), None)


def _complaints(results: Results) -> Iterator[str]:
    names = [arm.id for arm in results.arms]
    if not names or not results.comparisons:
        yield "arms, comparisons: a benchmark has at least one of each"
    yield from (f"arms: {name!r} is there twice" for name, count in Counter(names).items() if count > 1)
    for number, comparison in enumerate(results.comparisons):
        where = f"comparisons.{number}"
        unknown = [name for name in (comparison.baseline, comparison.candidate) if name not in names]
        if unknown:
            yield f"{where}: {unknown[0]!r} is none of the arms"
        if not comparison.cells:
            yield f"{where}: it has no cells"
        counts = Counter(cell.identity for cell in comparison.cells)
        yield from (f"{where}: the cell {name} is there twice" for name, count in counts.items() if count > 1)
        for index, cell in enumerate(comparison.cells):
            yield from (f"{where}.cells.{index}: {problem}" for problem in _of_cell(cell))


def _of_cell(cell: CellResult) -> Iterator[str]:
    sizes = {
        "isl": cell.isl,
        "osl": cell.osl,
        "batch_size": cell.batch_size,
        "candidate_batch_size": cell.candidate_batch_size or 1,
        "num_series": cell.num_series,
    }
    wrong = [name for name, size in sizes.items() if not 1 <= size <= _LARGEST_SIZE]
    if wrong:
        yield f"{wrong[0]} is {sizes[wrong[0]]}"
    if cell.speedup is None:
        if cell.status != "FAIL":
            yield f"its status is {cell.status}, but it has no speed-up"
        return
    if cell.status == "FAIL":
        yield "its status is FAIL, but it has a speed-up"
    arms = (cell.baseline, cell.candidate)
    for name, arm in zip(("baseline", "candidate"), arms, strict=True):
        yield from (f"{name}: {problem}" for problem in _of_arm(arm, cell.num_series))
    for name, ratio in {"speedup": cell.speedup, **cell.ratios}.items():
        if isinstance(ratio, Interval) and not 0 < ratio.low <= ratio.ratio <= ratio.high:
            yield f"{name}: the ratio {ratio.ratio} is not within its interval"
    yield from _of_speedup(cell)


def _of_arm(arm: ArmCell | None, num_series: int) -> Iterator[str]:
    missing = [name for name in REQUIRED_METRICS if arm is None or name not in arm.metrics]
    if arm is None or missing:
        yield f"{missing[0]} is missing"
        return
    lengths = set()
    for name, summary in arm.metrics.items():
        if isinstance(summary, Absent):
            if name in REQUIRED_METRICS:
                yield f"{name} is absent"
            continue
        lengths.add(len(summary.samples))
        yield from (f"{name}: {problem}" for problem in _of_samples(summary))
    if len(lengths) > 1:
        yield "its metrics have different numbers of samples"
    size = max(lengths, default=0)
    if size % num_series:
        yield f"{size} samples are not {num_series} series of equal length"


def _of_samples(summary: Summary) -> Iterator[str]:
    samples = summary.samples
    if len(samples) < MIN_SAMPLES:
        yield f"{len(samples)} samples have no spread"
        return
    outside = [sample for sample in samples if not _SMALLEST <= sample <= _LARGEST]
    if outside:
        yield f"the sample {outside[0]} is outside of what can be measured"
        return
    for name, found, expected in (
        ("median", summary.median, median(samples)),
        ("minimum", summary.minimum, min(samples)),
        ("maximum", summary.maximum, max(samples)),
    ):
        if not math.isclose(found, expected, rel_tol=_RELATIVE):
            yield f"its {name} is {found}, but of its samples it is {expected}"
    if not 0 <= summary.cv < math.inf:
        yield f"its coefficient of variation is {summary.cv}"


def _of_speedup(cell: CellResult) -> Iterator[str]:
    """The ratio of throughputs must be that of the samples, which are pairs in order."""
    rates = [
        summary.samples
        for arm in (cell.baseline, cell.candidate)
        if arm is not None and isinstance(summary := arm.metrics.get(REQUIRED_METRICS[1]), Summary)
    ]
    assert cell.speedup is not None
    if len(rates) != len(("baseline", "candidate")) or any(min(one, default=0) < _SMALLEST for one in rates):
        return
    if len(rates[0]) != len(rates[1]):
        yield "baseline and candidate have different numbers of samples"
        return
    logs = [math.log(above) - math.log(below) for below, above in zip(*rates, strict=True)]
    expected = math.exp(sum(logs) / len(logs))
    if not math.isclose(cell.speedup.ratio, expected, rel_tol=_RELATIVE):
        yield f"its speed-up is {cell.speedup.ratio}, but of its samples it is {expected}"
