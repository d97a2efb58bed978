"""Every metric on timestamps written by hand; binary fractions, so that results are exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bench.measure.timeline import Timeline
from bench.metrics.static_batch import METRICS, percentile
from bench.report.results import Absent

# Two sequences: 3 tokens in and 5 out each. Starts at 100 s; prefill 0.5 s, then 0.25 s a step.
HAND_WRITTEN = Timeline(
    start_s=100.0,
    token_times_s=(100.5, 100.75, 101.0, 101.25, 101.5),
    num_input_tokens=(3, 3),
    num_output_tokens=(5, 5),
)
ONE_TOKEN = Timeline(
    start_s=8.0, token_times_s=(8.25,), num_input_tokens=(3, 3, 3, 3), num_output_tokens=(1, 1, 1, 1)
)


def test_every_metric_is_exact_on_hand_written_timestamps() -> None:
    values = {metric.name: metric.compute(HAND_WRITTEN) for metric in METRICS}
    assert isinstance(values.pop("itl_p99_s"), Absent)
    assert isinstance(values.pop("output_tokens_per_s_per_gpu"), Absent)
    assert values == {
        "latency_s": 1.5,
        "ttft_s": 0.5,
        "tpot_s": 0.25,
        "output_tokens_per_s": 10 / 1.5,
        "total_tokens_per_s": 16 / 1.5,
        "itl_p50_s": 0.25,
        "output_tokens_per_s_per_user": 5 / 1.5,
        "requests_per_s": 2 / 1.5,
    }


def test_a_single_output_token_has_every_metric_but_time_per_further_token() -> None:
    values = {metric.name: metric.compute(ONE_TOKEN) for metric in METRICS}
    for name in ("tpot_s", "itl_p50_s", "itl_p99_s"):
        absent = values.pop(name)
        assert isinstance(absent, Absent)
        assert "osl = 1" in absent.absent
    assert isinstance(values.pop("output_tokens_per_s_per_gpu"), Absent)
    assert values == {
        "latency_s": 0.25,
        "ttft_s": 0.25,
        "output_tokens_per_s": 16.0,
        "total_tokens_per_s": 64.0,
        "output_tokens_per_s_per_user": 4.0,
        "requests_per_s": 16.0,
    }


def test_ttft_and_the_decode_steps_add_up_to_the_latency() -> None:
    values = {metric.name: metric.compute(HAND_WRITTEN) for metric in METRICS}
    ttft, tpot, latency = values["ttft_s"], values["tpot_s"], values["latency_s"]
    assert isinstance(ttft, float)
    assert isinstance(tpot, float)
    assert ttft + 4 * tpot == latency


def test_per_gpu_throughput_is_shared_by_the_gpus() -> None:
    two = replace(HAND_WRITTEN, num_gpus=2)
    values = {metric.name: metric.compute(two) for metric in METRICS}
    assert values["output_tokens_per_s_per_gpu"] == 5 / 1.5


def test_percentiles_agree_with_scipy_and_need_enough_samples() -> None:
    samples = np.random.default_rng(0).gamma(2.0, size=100).tolist()
    for share in (0.5, 0.9, 0.99):
        expected = float(stats.scoreatpercentile(samples, 100 * share))
        assert percentile(samples, share) == pytest.approx(expected, rel=1e-12)
    absent = percentile(samples[:99], 0.99)
    assert isinstance(absent, Absent)
    assert "needs 100 samples, there are 99" in absent.absent
    assert isinstance(percentile(samples[:9], 0.9), Absent)
    assert percentile([3.0], 0.5) == 3.0


def test_the_tail_of_inter_token_latency_is_the_rare_gap() -> None:
    times = np.cumsum([0.25] * 200 + [8.0] * 10 + [0.25]).tolist()
    slow = Timeline(start_s=0.0, token_times_s=tuple(times), num_input_tokens=(1,), num_output_tokens=(211,))
    values = {metric.name: metric.compute(slow) for metric in METRICS}
    assert values["itl_p50_s"] == 0.25
    assert values["itl_p99_s"] == 8.0
