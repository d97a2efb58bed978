"""Order, warm-up and summaries of one cell, on scripted stand-ins for sessions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bench.design.grid import Cell
from bench.measure.cell import CellMeasurement, warm_up
from bench.measure.statistics import NUM_SERIES, StoppingRule, ratio_interval
from bench.measure.timeline import Timeline
from bench.report.results import Absent, ArmCell, CellResult, Interval, Summary
from bench.runtimes.base import Vocabulary
from compressor.core.errors import VerificationError

CELL = Cell(isl=8, osl=4, batch_size=2)
RULE = StoppingRule(min_pairs=5, max_pairs=8)
WARM = 2  # runs, of a steady arm
PROMPTS = np.ones((2, 8), dtype=np.int32)
VOCABULARY = Vocabulary(size=50, special_token_ids=(0, 49))


@dataclass
class ScriptedSession:
    """Stands in for a loaded model: latencies from a script, every call noted in a shared log."""

    name: str
    latencies_s: Iterator[float]
    log: list[str] = field(default_factory=list)
    vocabulary: Vocabulary = VOCABULARY
    missing_tokens: int = 0

    def generate(self, prompts: Any, *, osl: int) -> Timeline:
        self.log.append(self.name)
        batch_size, isl = prompts.shape
        latency_s = next(self.latencies_s)
        return Timeline(
            start_s=0.0,
            token_times_s=tuple(np.linspace(latency_s / osl, latency_s, osl).tolist()),
            num_input_tokens=(isl,) * batch_size,
            num_output_tokens=(osl - self.missing_tokens,) * batch_size,
        )


def scripted(name: str, latencies_s: Iterable[float], **fields: Any) -> ScriptedSession:
    return ScriptedSession(name, iter(latencies_s), **fields)


def steady(first_s: float, second_s: float, **fields: Any) -> list[ScriptedSession]:
    return [scripted(name, itertools.repeat(s), **fields) for name, s in (("A", first_s), ("B", second_s))]


def measure(baseline: Any, candidate: Any, cell: Cell = CELL) -> CellResult:
    """All series of a cell; a real benchmark loads both models again for each."""
    measurement = CellMeasurement(cell, rule=RULE, seed=0)
    while not measurement.is_done:
        measurement.measure_series(baseline, candidate)
    return measurement.result()


def summary(arm: ArmCell | None, metric: str) -> Summary:
    assert arm is not None
    found = arm.metrics[metric]
    assert isinstance(found, Summary)
    return found


def test_every_series_alternates_a_b_b_a_after_both_arms_are_warm() -> None:
    log: list[str] = []
    result = measure(*steady(2.0, 1.0, log=log))
    series = "ABBAABBAAB"
    assert "".join(log) == ("AABB" + series) * (1 + NUM_SERIES)
    assert result.order == series
    assert result.status == "ok"
    assert result.num_series == NUM_SERIES


def test_numbers_are_of_the_fresh_series_and_the_first_is_kept_raw() -> None:
    baseline = scripted("A", [4.0] * (WARM + 5) + [2.0] * (WARM + 5) * NUM_SERIES)
    candidate = scripted("B", itertools.repeat(1.0))
    result = measure(baseline, candidate)
    assert result.speedup is not None
    found = (result.speedup.ratio, result.speedup.low, result.speedup.high, result.speedup.num_pairs)
    assert found == pytest.approx((2.0, 2.0, 2.0, 5 * NUM_SERIES), rel=1e-12)
    assert summary(result.baseline, "latency_s").samples == (2.0,) * 5 * NUM_SERIES
    assert summary(result.baseline, "output_tokens_per_s").median == 4.0
    assert summary(result.candidate, "total_tokens_per_s").median == 24.0
    assert result.baseline is not None
    assert result.baseline.exploration_latency_s == (4.0,) * 5


def test_every_ratio_is_over_the_means_of_the_series() -> None:
    levels = [2.1, 1.95, 2.05, 1.9, 2.0, 1.98]
    baseline = scripted("A", [level for level in [2.0, *levels] for _ in range(WARM + 5)])
    candidate = scripted("B", itertools.repeat(1.0))
    result = measure(baseline, candidate)
    expected = ratio_interval(levels, [1.0] * NUM_SERIES)
    assert result.num_series == NUM_SERIES
    for interval in (result.speedup, result.ratios["latency_s"]):
        assert isinstance(interval, Interval)
        assert interval.num_pairs == 5 * NUM_SERIES
        found = (interval.ratio, interval.low, interval.high)
        assert found == pytest.approx((expected.ratio, expected.low, expected.high), rel=1e-12)
    assert len(summary(result.baseline, "latency_s").samples) == 5 * NUM_SERIES


def test_every_ratio_above_one_means_the_candidate_is_better() -> None:
    result = measure(*steady(3.0, 1.0))
    found = {name: ratio for name, ratio in result.ratios.items() if isinstance(ratio, Interval)}
    assert result.ratios.keys() - found.keys() == {"itl_p99_s", "output_tokens_per_s_per_gpu"}
    for name, ratio in found.items():
        assert ratio.ratio == pytest.approx(3.0), name


def test_each_model_may_have_a_batch_size_of_its_own_and_the_ratio_is_per_token() -> None:
    result = measure(*steady(3.0, 3.0), Cell(8, 4, 2, 6))
    assert result.speedup is not None
    assert result.speedup.ratio == pytest.approx(3.0)
    assert summary(result.candidate, "output_tokens_per_s").median == 8.0
    assert (result.batch_size, result.candidate_batch_size, result.label) == (2, 6, "8/4 x 2:6")


def test_a_metric_that_cannot_be_computed_is_absent_with_its_reason() -> None:
    result = measure(*steady(3.0, 1.0), Cell(isl=8, osl=1, batch_size=1))
    assert result.baseline is not None
    assert isinstance(result.baseline.metrics["tpot_s"], Absent)
    assert isinstance(result.ratios["tpot_s"], Absent)


def test_an_unsteady_cell_is_noisy_and_keeps_its_numbers() -> None:
    result = measure(scripted("A", itertools.cycle([1.0, 4.0])), scripted("B", itertools.repeat(1.0)))
    assert (result.status, result.num_series) == ("NOISY", 1)
    assert result.speedup is not None
    assert result.speedup.num_pairs == RULE.max_pairs
    assert result.baseline is not None
    assert not result.baseline.is_settled


def test_an_arm_is_as_warm_as_in_its_worst_series() -> None:
    restless = [1.0, 2.0] * 3
    baseline = scripted("A", [1.0] * (WARM + 5) + restless + [1.0] * 5 + [1.0] * (WARM + 5) * NUM_SERIES)
    result = measure(baseline, scripted("B", itertools.repeat(1.0)))
    assert result.baseline is not None
    assert result.candidate is not None
    assert (result.baseline.num_warmup_runs, result.baseline.is_settled) == (6, False)
    assert (result.candidate.num_warmup_runs, result.candidate.is_settled) == (2, True)


def test_a_failed_cell_needs_nothing_more_and_keeps_its_reason() -> None:
    measurement = CellMeasurement(Cell(8, 4, 2, 6), rule=RULE, seed=0)
    measurement.measure_series(*steady(1.0, 1.0))
    assert not measurement.is_done
    measurement.fail("out of memory")
    assert measurement.is_done
    result = measurement.result()
    assert (result.status, result.reason, result.speedup) == ("FAIL", "out of memory", None)
    assert result.label == "8/4 x 2:6"


@pytest.mark.parametrize(
    ("latencies_s", "num_runs", "is_settled"),
    [
        ([1.0, 1.05], 2, True),
        ([9.0, 3.0, 1.0, 1.09], 4, True),
        ([1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 6, False),
    ],
)
def test_warm_up_ends_when_two_latencies_agree_or_at_its_bound(
    latencies_s: list[float], num_runs: int, is_settled: bool
) -> None:
    warmup = warm_up(scripted("A", latencies_s), PROMPTS, cell=CELL)
    assert (warmup.num_runs, warmup.is_settled) == (num_runs, is_settled)


def test_a_runtime_that_stops_early_is_refused() -> None:
    pair = scripted("A", itertools.repeat(1.0), missing_tokens=1), scripted("B", itertools.repeat(1.0))
    with pytest.raises(VerificationError, match="output tokens"):
        measure(*pair)
