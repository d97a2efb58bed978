"""Results written by hand, or from given latencies, for tests of reports and gates."""

from __future__ import annotations

from collections.abc import Sequence

from bench.design.grid import Cell
from bench.measure.cell import Warmup, seconds_per_output_token, summarise
from bench.measure.statistics import StoppingRule, conclude
from bench.measure.timeline import Timeline
from bench.metrics.static_batch import METRICS, latency_s
from bench.report.results import (
    Absent,
    ArmRecord,
    CellResult,
    ComparisonResult,
    Environment,
    FileRecord,
    Gpu,
    Protocol,
    Results,
    Snapshot,
)

CELL = Cell(isl=8, osl=4, batch_size=2)


def timeline(latency_s: float, cell: Cell = CELL) -> Timeline:
    return Timeline(
        start_s=0.0,
        token_times_s=tuple(latency_s * (step + 1) / cell.osl for step in range(cell.osl)),
        num_input_tokens=(cell.isl,) * cell.batch_size,
        num_output_tokens=(cell.osl,) * cell.batch_size,
    )


def cell_of(baseline_s: Sequence[float], candidate_s: Sequence[float], cell: Cell = CELL) -> CellResult:
    """The cell that these latencies make, with the benchmark's own verdict on their noise."""
    pairs = tuple(
        (timeline(first, cell), timeline(second, cell))
        for first, second in zip(baseline_s, candidate_s, strict=True)
    )
    rule = StoppingRule(min_pairs=5, max_pairs=40)
    measurement = conclude(pairs, [], duration=seconds_per_output_token, rule=rule)
    order = ("ABBA" * len(pairs))[: 2 * len(pairs)]
    return summarise(
        measurement,
        cell=cell,
        warmups=[Warmup(2, is_settled=True)] * 2,
        order=order,
        metrics=METRICS,
        latency=latency_s,
    )


def gpu(name: str = "NVIDIA H100 80GB HBM3", **fields: str) -> Gpu:
    values = {"driver": "1", "memory_mib": "2", "sm_clock_mhz": "3", "memory_clock_mhz": "4"}
    return Gpu(name=name, **{**values, "power_limit_w": "700", **fields})


def results_of(
    cells: Sequence[CellResult], *, gpus: tuple[Gpu, ...] = (), torch: str = "2.8", teacher_sha: str = "0"
) -> Results:
    """A benchmark of one teacher and one student."""
    snapshot = Snapshot(load_average=(0.5, 0.5, 0.5), cpu_clock_mhz=None, gpus=gpus)
    return Results(
        created="2026-01-01T00:00:00+00:00",
        protocol=Protocol(
            seed=0,
            min_pairs=5,
            max_pairs=40,
            min_warmup_runs=2,
            max_warmup_runs=6,
            warmup_tolerance=0.1,
            confidence=0.95,
            max_relative_width=0.1,
            metrics={"latency_s": "all of it"},
        ),
        environment=Environment(
            cpu="Some CPU",
            num_logical_cores=4,
            num_usable_cores=2,
            memory_bytes=8 * 2**30,
            os="Linux",
            cpu_governor=None,
            container_digest=None,
            git_commit="abc",
            versions={"compress-export": "1", "torch": torch},
            before=snapshot,
            after=snapshot,
        ),
        arms=(arm_record("teacher", teacher_sha), arm_record("student", "1")),
        comparisons=(
            ComparisonResult(baseline="teacher-fp32", candidate="student-fp32", cells=tuple(cells)),
        ),
    )


def arm_record(model: str, digit: str, precision: str = "fp32") -> ArmRecord:
    return ArmRecord(
        id=f"{model}-{precision}",
        model=model,
        precision=precision,
        runtime="onnxruntime",
        num_parameters=1_234_567,
        files={"model.onnx": FileRecord(sha256=digit * 64, size_bytes=2**30)},
        peak_memory=Absent(absent="no cell of the grid ran"),
    )
