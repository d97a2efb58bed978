"""The roofline by hand on a shape small enough to count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.design.arms import Arm
from bench.design.grid import Cell
from bench.machine import machine_rates as machine_rates_module
from bench.machine.machine_rates import RATES_FILE, machine_rates
from bench.machine.roofline import floor_s, phase_floors_s, rates_of_gpu, roofline_of_cell, work_of
from bench.report.results import Absent, Rates, Roofline
from compressor.core.hardware import GPUS
from compressor.models.dims import num_linear_parameters
from compressor.models.presets import PRESETS
from tests.unit.bench.results_by_hand import cell_of

TINY = PRESETS["smollm2-135m"].dims.with_shape(
    hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, vocab_size=32,
)  # fmt: skip
RATES = Rates(bandwidth_bytes_per_s=1000.0, matmul_ops_per_s={"fp32": 10_000.0}, device="by hand")
CELL = Cell(isl=4, osl=3, batch_size=2)
# Two layers of q, k, v, o (8x8 + 2 x 8x4 + 8x8) and three MLP matrices of 8x16.
LINEAR = 2 * (64 + 32 + 32 + 64 + 3 * 128)
WEIGHTS = LINEAR + 32 * 8 + 8 * (2 * 2 + 1)


def arm(name: str, **fields: object) -> Arm:
    values = {"model": name, "precision": "fp32", "path": Path(), "runtime": "r", "num_parameters": 1}
    return Arm(id=name, **{**values, "dims": TINY, **fields})


def test_work_is_counted_by_hand() -> None:
    work = work_of(TINY, "fp32", CELL)
    assert num_linear_parameters(TINY) == LINEAR
    cache = 2 * 2 * 1 * 4 * 4  # keys and values, layers, heads, width, bytes
    assert work.prefill_bytes == WEIGHTS * 4 + 2 * 4 * cache
    # Four prompt tokens that attend to two others on average, and the LM head once.
    attention = 2 * 2 * 2 * 4 * 2  # two ops x (2 layers x 2 heads x width 4 x 2 products) x context 2 / 2
    assert work.prefill_ops == 2 * (4 * (2 * LINEAR + 2 * attention) + 2 * 32 * 8)
    assert work.step_bytes == WEIGHTS * 4 + 2 * 5 * cache
    assert work.step_ops == 2 * 2 * (LINEAR + 32 * 8 + 2 * 2 * 2 * 4 * 5)
    assert work.num_steps == 2


def test_phases_are_those_of_the_whole() -> None:
    work = work_of(TINY, "fp32", CELL)
    prefill, step = phase_floors_s(work, RATES, "fp32")
    assert prefill == max(work.prefill_bytes / 1000.0, work.prefill_ops / 10_000.0)
    assert step == max(work.step_bytes / 1000.0, work.step_ops / 10_000.0)
    assert floor_s(work, RATES, "fp32") == pytest.approx(prefill + 2 * step)


@pytest.mark.parametrize(("name", "fp8_over_bf16"), [("h100", 2), ("a100", 1), ("h200", 2)])
def test_rates_of_a_gpu_are_its_datasheets(name: str, fp8_over_bf16: int) -> None:
    rates = rates_of_gpu(GPUS[name])
    bandwidth = {"h100": 3.35e12, "a100": 2.039e12, "h200": 4.8e12}[name]
    assert rates.bandwidth_bytes_per_s == bandwidth
    ops = rates.matmul_ops_per_s
    assert ops["fp8"] == fp8_over_bf16 * ops["bf16"] == fp8_over_bf16 * ops["fp16"]


def test_packed_2_of_4_weights_are_read_with_the_places_of_those_kept() -> None:
    dense, sparse = work_of(TINY, "bf16", CELL), work_of(TINY, "bf16+2:4", CELL)
    # Half of 16 bits, and two bits for each one kept: 9 of 16.
    assert dense.step_bytes - sparse.step_bytes == LINEAR * 2 * 7 / 16
    assert sparse.step_ops == dense.step_ops / 2


def test_each_phase_takes_the_slower_of_moving_and_computing() -> None:
    work = work_of(TINY, "fp32", CELL)
    expected = max(work.prefill_bytes / 1000, work.prefill_ops / 10_000)
    expected += 2 * max(work.step_bytes / 1000, work.step_ops / 10_000)
    assert floor_s(work, RATES, "fp32") == pytest.approx(expected)


def test_an_untied_embedding_is_not_read_as_a_matrix() -> None:
    untied = replace(TINY, tie_word_embeddings=False)
    assert work_of(untied, "fp32", CELL).step_bytes == work_of(TINY, "fp32", CELL).step_bytes


def test_half_the_layers_promise_less_than_twice_the_speed() -> None:
    half = TINY.with_shape(num_hidden_layers=1)
    result = cell_of([2.0] * 5, [1.25] * 5, CELL)
    roofline = roofline_of_cell(arm("t"), arm("s", dims=half), cell=CELL, result=result, rates=RATES)
    assert isinstance(roofline, Roofline)
    assert 1.0 < roofline.best_speedup < 2.0
    assert roofline.reached == pytest.approx(1.6 / roofline.best_speedup)
    assert roofline.baseline_share == pytest.approx(roofline.baseline_floor_s / 2.0)


def test_a_larger_batch_of_the_candidate_counts_per_token() -> None:
    cell = Cell(4, 3, 2, 4)
    result = cell_of([2.0] * 5, [2.0] * 5, CELL)
    roofline = roofline_of_cell(arm("t"), arm("t2"), cell=cell, result=result, rates=RATES)
    assert isinstance(roofline, Roofline)
    floors = roofline.baseline_floor_s, roofline.candidate_floor_s
    assert roofline.best_speedup == pytest.approx((floors[0] / 2) / (floors[1] / 4))


@pytest.mark.parametrize(("fields", "reason"), [({"dims": None}, "shape"), ({"precision": "fp8"}, "fp8")])
def test_what_is_not_known_is_absent(fields: dict[str, object], reason: str) -> None:
    result = cell_of([2.0] * 5, [1.0] * 5, CELL)
    roofline = roofline_of_cell(arm("t"), arm("s", **fields), cell=CELL, result=result, rates=RATES)
    assert isinstance(roofline, Absent)
    assert reason in roofline.absent


def test_rates_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("_CPU_BYTES", 1 << 20), ("_CPU_SIZES", (64,)), ("NUM_REPETITIONS", 2)):
        monkeypatch.setattr(machine_rates_module, name, size)
    first = machine_rates(tmp_path, device="cpu", precisions=("fp32",))
    assert first.bandwidth_bytes_per_s > 0
    assert first.matmul_ops_per_s.keys() == {"fp32"}
    assert machine_rates(tmp_path, device="cpu", precisions=("fp32",)) == first
    more = machine_rates(tmp_path, device="cpu", precisions=("fp32", "bf16"))
    assert more.matmul_ops_per_s.keys() == {"fp32", "bf16"}
    assert more.matmul_ops_per_s["fp32"] == first.matmul_ops_per_s["fp32"]
    assert more.bandwidth_bytes_per_s == first.bandwidth_bytes_per_s
    other = first.model_copy(update={"device": "another machine"})
    (tmp_path / RATES_FILE).write_text(other.model_dump_json())
    assert machine_rates(tmp_path, device="cpu", precisions=("fp32",)).device == first.device


def test_a_slow_product_is_timed_once_and_larger_ones_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without half-precision kernels would take a minute over the largest size."""
    sizes: list[int] = []

    class Slow:
        def __init__(self, shape: tuple[int, int], **_options: object) -> None:
            self.size = shape[0]

        def __matmul__(self, other: Slow) -> Slow:
            sizes.append(self.size)
            clock[0] += self.size / 1000
            return other

    clock = [0.0]
    monkeypatch.setattr(machine_rates_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "ones", Slow)
    rate = machine_rates_module._matmul_rate(torch.float16, "cpu")
    assert sizes == [384]
    assert rate == pytest.approx(2 * 384**3 / 0.384)
