"""The benchmark of a run, planned: arms, engines, disk, memory and hours, before anything is made. No torch.

Hours are a roofline's: each run generates what it is asked for at an assumed share of the speed that the
GPU's datasheet allows. They are of the shortest complete benchmark, in which no cell is noisy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.design.arms import Arm, Comparison
from bench.design.cells import MIN_WARMUP_REQUESTS, NUM_SERVED_SERIES, cells_of
from bench.design.comparisons import arm_name, fair_comparisons, split_precision
from bench.design.grid import Cell, grid_of, served_cells
from bench.machine.roofline import compute_precision, floor_s, rates_of_gpu, work_of
from compressor.choices.formats import FORMATS
from compressor.choices.runtimes import CHECKPOINT
from compressor.models.dims import Dims, kv_cache_bytes_per_token, weight_bytes
from compressor.planning.cost import Hardware
from compressor.planning.plan import Plan
from compressor.planning.planned_bench import PlannedArm, PlannedBench
from compressor.recipe.recipe import Bench, Recipe

ROOFLINE_SHARE = 0.5  # of the roofline's speed: an assumption
START_S = 60.0  # of a server, until it answers
BUILD_S = 300.0  # of an engine
_TEACHER, _STUDENT = "teacher", "student"


def with_bench(plan: Plan, recipe: Recipe, hardware: Hardware | None) -> Plan:
    """The plan of a settled recipe, with what its benchmark will be."""
    arms = planned_arms(recipe)
    if not arms:
        return plan
    hardware = hardware or Hardware()
    bench = recipe.bench
    num_gpus = recipe.export.tensorrt_llm.tp_size * recipe.export.tensorrt_llm.pp_size
    dims = {_TEACHER: plan.teacher.dims, _STUDENT: plan.student.dims}
    named = {arm.name: arm for arm in arms}
    pairs = fair_comparisons(tuple(named), which=bench.baselines)
    sides = [
        (named[name], side)
        for pair in pairs
        for cell in _cells(bench, named[pair[0]], named[pair[1]])
        for name, side in zip(pair, (cell.baseline, cell.candidate), strict=True)
    ]
    repetitions = (1 + (NUM_SERVED_SERIES if bench.row.serves else bench.num_series)) * bench.min_pairs
    num_engines = sum(arm.engine is not None for arm in arms)
    memory, hours = None, None
    if not bench.largest_batch:  # which is found by measuring, and takes what the device has
        memory = max(_memory(arm, cell, dims) for arm, cell in sides) // num_gpus
        hours = _hours(sides, dims, bench, hardware, num_gpus)
    if hours is not None:
        hours = round(hours * repetitions + num_engines * BUILD_S / 3600, 2)
    made = PlannedBench(
        arms=arms,
        comparisons=pairs,
        num_cells=len(sides) // 2,
        num_runs=len(sides) * repetitions,
        disk_bytes=_disk_bytes(plan, arms, dims),
        memory_bytes_per_device=memory,
        fits=memory <= hardware.device.memory_bytes if bench.measures_gpu and memory is not None else None,
        hardware=f"{num_gpus} x {hardware.device.name}" if bench.measures_gpu else "this machine",
        hours=hours,
        assumptions=None if hours is None else _assumptions(bench, num_engines),
    )
    return plan.model_copy(update={"bench": made})


def planned_arms(recipe: Recipe) -> tuple[PlannedArm, ...]:
    """The arms of a settled recipe's benchmark, in the order in which they are measured."""
    bench, formats = recipe.bench, recipe.measured_formats()
    if not bench.is_measured:
        return ()
    found: list[PlannedArm] = []

    def add(model: str, precision: str, engine: str | None = None) -> None:
        name = arm_name(model, precision)
        found.append(PlannedArm(name=name, model=model, precision=precision, engine=engine))

    if bench.measures_engines:
        for precision, name in formats.items():
            sparse = recipe.sparsify.pattern if FORMATS[name].has_dense_twin else None
            add(_TEACHER, precision, f"stages/teacher-{name}/engine")
            add(_STUDENT, precision, f"exports/{name}/engine{'-dense' if sparse else ''}")
            if sparse:
                add(_STUDENT, f"{precision}+{sparse}", f"exports/{name}/engine")
        return tuple(found)
    if bench.row.serves:
        stored = recipe.stored_precision
        own: Sequence[str] = () if bench.precisions and stored not in bench.precisions else (stored,)
    else:
        own = recipe.bench_precisions() if bench.row.reads == CHECKPOINT else ()
    for precision in dict.fromkeys((*own, *formats)):
        add(_TEACHER, precision)
        add(_STUDENT, precision)
    return tuple(found)


def _cells(bench: Bench, baseline: PlannedArm, candidate: PlannedArm) -> tuple[Cell, ...]:
    """The cells that this pair is measured in; each model's largest batch is found only by measuring."""
    grid = served_cells(bench) if bench.row.serves else grid_of(bench)
    return cells_of(Comparison(baseline=_arm(baseline), candidate=_arm(candidate)), grid, {})


def _arm(arm: PlannedArm) -> Arm:
    return Arm(
        id=arm.name, model=arm.model, precision=arm.precision, path=Path(), runtime="", num_parameters=0
    )


def _hours(
    sides: Sequence[tuple[PlannedArm, Cell]],
    dims: dict[str, Dims],
    bench: Bench,
    hardware: Hardware,
    num_gpus: int,
) -> float | None:
    """Hours of one run of every arm of every cell; None where a rate is not known."""
    rates = rates_of_gpu(hardware.device)
    if not bench.measures_gpu or any(
        compute_precision(arm.precision) not in rates.matmul_ops_per_s for arm, _ in sides
    ):
        return None
    seconds = 0.0
    for arm, cell in sides:
        wave = floor_s(work_of(dims[arm.model], arm.precision, cell), rates, arm.precision) / num_gpus
        waves, start = 1, 0.0
        if bench.row.serves:
            warmup = max(MIN_WARMUP_REQUESTS, cell.batch_size)
            requests = bench.requests_per_run(cell.batch_size) + warmup
            waves, start = -(-requests // cell.batch_size), START_S
        seconds += start + waves * wave / ROOFLINE_SHARE
    return seconds / 3600


def _assumptions(bench: Bench, num_engines: int) -> str:
    parts = [f"{ROOFLINE_SHARE:.0%} of the roofline's speed"]
    parts += [f"{START_S:.0f} s per start of a server"] if bench.row.serves else []
    parts += [f"{BUILD_S / 60:.0f} min per engine"] if num_engines else []
    return ", ".join(parts)


def _disk_bytes(plan: Plan, arms: tuple[PlannedArm, ...], dims: dict[str, Dims]) -> int:
    """The teacher's exports with their engines, and the engines in the student's."""
    of_teacher = sum(use.num_bytes for use in plan.disk if use.stage == "bench")
    return of_teacher + sum(
        weight_bytes(dims[arm.model], split_precision(arm.precision)[0])
        for arm in arms
        if arm.engine and arm.model == _STUDENT
    )


def _memory(arm: PlannedArm, cell: Cell, dims: dict[str, Dims]) -> int:
    own, precision = dims[arm.model], split_precision(arm.precision)[0]
    width = 4 if precision in ("fp32", "int4") else 2
    cache = cell.batch_size * (cell.isl + cell.osl) * kv_cache_bytes_per_token(own, width)
    return int(weight_bytes(own, precision)) + cache
