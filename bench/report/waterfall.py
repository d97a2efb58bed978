"""From the teacher to the smallest student one change at a time, with every step measured.

Each step is a paired comparison of its own and so is the total: ratios are read, never multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.design.comparisons import split_precision
from bench.report.results import ArmRecord, CellResult, ComparisonResult, Results


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measured comparison on the way."""

    baseline: str
    candidate: str
    change: str
    cell: CellResult


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """The steps of one cell, each from where the one before ended; and from the first arm to the last."""

    label: str
    steps: tuple[Step, ...]
    total: Step


def waterfalls_of(results: Results) -> list[Waterfall]:
    """Every cell of every comparison that changes more than one thing and whose steps were measured."""
    found = []
    for comparison in results.comparisons:
        changes = changes_between(results.arm(comparison.baseline), results.arm(comparison.candidate))
        if len(changes) < 2:  # noqa: PLR2004 - one change has no steps
            continue
        chain = _steps_between(results, comparison.baseline, comparison.candidate)
        found += [_waterfall(results, comparison, chain, cell) for cell in comparison.cells if chain]
    return [waterfall for waterfall in found if waterfall is not None]


def changes_between(baseline: ArmRecord, candidate: ArmRecord) -> list[str]:
    """What the candidate does differently: `model`, `precision`, `2:4`."""
    changes = []
    if baseline.model != candidate.model:
        changes.append(f"{baseline.model} → {candidate.model}")
    (dense_before, sparse_before), (dense_now, sparse_now) = (
        split_precision(arm.precision) for arm in (baseline, candidate)
    )
    if dense_before != dense_now:
        changes.append(f"{dense_before} → {dense_now}")
    if sparse_before != sparse_now:
        changes.append(f"{sparse_before or 'dense'} → {sparse_now or 'dense'}")
    return changes


def _steps_between(results: Results, start: str, end: str) -> list[ComparisonResult]:
    """Comparisons of one change each that lead from `start` to `end`, fewest first; empty if none do."""
    chains: list[list[ComparisonResult]] = [[]]
    while chains:
        longer: list[list[ComparisonResult]] = []
        for chain in chains:
            here = chain[-1].candidate if chain else start
            if here == end:
                return chain
            visited = {start, *(step.candidate for step in chain)}
            longer += [
                [*chain, comparison]
                for comparison in results.comparisons
                if comparison.baseline == here
                and comparison.candidate not in visited
                and len(changes_between(results.arm(here), results.arm(comparison.candidate))) == 1
            ]
        chains = longer
    return []


def _waterfall(
    results: Results, total: ComparisonResult, chain: list[ComparisonResult], cell: CellResult
) -> Waterfall | None:
    """The chain in one cell, or None where a step has no number."""
    steps = [step for part in (*chain, total) if (step := _step(results, part, cell.identity))]
    if len(steps) <= len(chain):
        return None
    return Waterfall(label=cell.identity, steps=tuple(steps[:-1]), total=steps[-1])


def _step(results: Results, comparison: ComparisonResult, identity: str) -> Step | None:
    cell = next((cell for cell in comparison.cells if cell.identity == identity and cell.speedup), None)
    if cell is None:
        return None
    changes = changes_between(results.arm(comparison.baseline), results.arm(comparison.candidate))
    return Step(
        baseline=comparison.baseline, candidate=comparison.candidate, change=", ".join(changes), cell=cell
    )
