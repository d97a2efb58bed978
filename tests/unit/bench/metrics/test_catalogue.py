"""Every metric on timestamps written by hand; binary fractions, so that results are exact."""

from __future__ import annotations

from bench.metrics.absent import Absent
from bench.metrics.catalogue import METRICS
from bench.timeline import Timeline

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
    assert {metric.name: metric.compute(HAND_WRITTEN) for metric in METRICS} == {
        "latency_s": 1.5,
        "ttft_s": 0.5,
        "tpot_s": 0.25,
        "output_tokens_per_s": 10 / 1.5,
        "total_tokens_per_s": 16 / 1.5,
    }


def test_a_single_output_token_has_every_metric_but_time_per_further_token() -> None:
    values = {metric.name: metric.compute(ONE_TOKEN) for metric in METRICS}
    absent = values.pop("tpot_s")
    assert isinstance(absent, Absent)
    assert "osl = 1" in absent.reason
    assert values == {
        "latency_s": 0.25,
        "ttft_s": 0.25,
        "output_tokens_per_s": 16.0,
        "total_tokens_per_s": 64.0,
    }


def test_ttft_and_the_decode_steps_add_up_to_the_latency() -> None:
    values = {metric.name: metric.compute(HAND_WRITTEN) for metric in METRICS}
    ttft, tpot, latency = values["ttft_s"], values["tpot_s"], values["latency_s"]
    assert isinstance(ttft, float)
    assert isinstance(tpot, float)
    assert ttft + 4 * tpot == latency
