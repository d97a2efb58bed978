"""What a run will do, from numbers alone: shapes, memory, disk and hours. No torch, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor.core.errors import UnsupportedError, UsageError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.core.records import Record
from compressor.models.dims import (
    Dims,
    flops_per_token,
    kv_cache_bytes_per_token,
    num_non_embedding_parameters,
    num_parameters,
    weight_bytes,
)
from compressor.planning.cost import (
    GpuRow,
    Hardware,
    TrainingEstimate,
    fp8_repair_flops,
    repair_flops,
    scoring_passes,
    training_estimate,
)
from compressor.planning.cuts import PlannedCut, plan_cuts
from compressor.planning.depth import depth_passes, of_cut, require_depth
from compressor.planning.disk import DiskUse, disk_uses, peak_disk_bytes, quantizes_teacher
from compressor.planning.outcome import Promise
from compressor.planning.planned_bench import PlannedBench
from compressor.planning.planned_preflight import PlannedPreflight
from compressor.planning.runtime_choice import RuntimeChoice
from compressor.planning.search_plan import SearchPlan, plan_search
from compressor.planning.stage_memory import stage_memory
from compressor.planning.target import ResolvedTarget, require_rotation, resolve_shape, resolve_target
from compressor.recipe.recipe import Recipe

SCHEMA: Literal["compress-export/plan/2"] = "compress-export/plan/2"


class PlannedModel(Record):
    """A model's dimensions and what follows from them."""

    dims: Dims
    num_parameters: int
    num_non_embedding_parameters: int
    weight_bytes: dict[str, int]
    kv_cache_bytes_per_token: int
    flops_per_token: int


class PlannedTexts(Record):
    """The SOURCE of each kind of text."""

    calibration: str
    training: str
    evaluation: str


class Hours(Record):
    """Hours on the stated hardware; `stages` holds calibration, repair and every training."""

    hardware: str
    assumed_utilisation: float
    stages: dict[str, float]
    gpu_hours: float
    cost_usd: float
    not_included: str = "loading, the linear systems of the repair, evaluation, export, benchmark"

    @property
    def total(self) -> float:
        """All stages."""
        return sum(self.stages.values())

    def with_search(self, hours: float, hardware: Hardware) -> Hours:
        """The same with a search before everything else."""
        gpu_hours = self.gpu_hours + hours * hardware.num_gpus
        return self.model_copy(
            update={
                "stages": {"search": hours, **self.stages},
                "gpu_hours": round(gpu_hours, 3),
                "cost_usd": round(gpu_hours * hardware.price, 2),
            }
        )


class Plan(Record):
    """A resolved run; `plan.json` holds it.

    Attributes:
        rule: Why the student has its shape.
        published_shape: The published shape that it is, if it is one.
        disk: What each stage writes, in the order of the stages.
        disk_bytes: The most that the run directory holds at one time.
        memory_bytes: The most that each stage holds on a CPU, by the last part of its directory; see
            `stage_memory`.
        promise: What the student is predicted to reach, where it was asked for that and not for a size.
        search: The shapes that a search tries first, where the recipe asks for one.
        runtime: What executes the models of the benchmark, and why.
        cuts: The shapes that several cuts leave, with training between them; none for one cut.
        bench: What the benchmark measures and takes, where there is one.
        preflight: Whether all of it is tried on a slice of the model first.
    """

    schema_id: Literal["compress-export/plan/2"] = Field(SCHEMA, alias="schema")
    model: str
    target: str | None
    rule: str
    published_shape: str | None
    teacher: PlannedModel
    student: PlannedModel
    compression: float
    exports: tuple[str, ...]
    can_be_pruned: bool
    text: PlannedTexts
    tokens: int
    out_dir: str
    disk: tuple[DiskUse, ...]
    disk_bytes: int
    memory_bytes: dict[str, int]
    hours: Hours
    training: TrainingEstimate | None
    promise: Promise | None = None
    search: SearchPlan | None = None
    runtime: RuntimeChoice | None = None
    cuts: tuple[PlannedCut, ...] = ()
    bench: PlannedBench | None = None
    preflight: PlannedPreflight | None = None

    def possible_students(self) -> tuple[Dims, ...]:
        """The student's shape, or all those that a search takes it from; with several cuts, each."""
        between = tuple(cut.shape for cut in self.cuts[:-1])
        return (*between, *(self.search.candidates if self.search else (self.student.dims,)))


def make_plan(
    recipe: Recipe,
    teacher: Dims,
    *,
    hardware: Hardware | None = None,
    out_dir: str = "",
    origin: Dims | None = None,
    found: ResolvedTarget | None = None,
    promise: Promise | None = None,
    runtime: RuntimeChoice | None = None,
) -> Plan:
    """Resolve a recipe for a teacher of known dimensions, on 8 H100 unless `hardware` says otherwise.

    `origin` is the published model that the teacher was itself made from; by default the teacher. `found` is
    the student that a search chose, or that a target by outcome asks for, which goes before the recipe's; the
    latter comes with its `promise`. `runtime` is what the recipe's benchmark was settled to.

    Raises:
        UsageError: no target, or one that cannot be resolved; an unknown GPU; a training budget that does
            not fill one window; a rotation that reduces nothing.
        UnsupportedError: a rotation of an architecture that cannot be rotated.
    """
    hardware = hardware or Hardware()
    search = plan_search(recipe, teacher, hardware)
    target = found or _target(recipe, teacher)
    student = target.student
    if recipe.prune.rotates:
        require_rotation(teacher, student)
    cuts, tried = plan_cuts(recipe, teacher, student), search.candidates if search else ()
    steps = _steps(recipe, teacher, student, cuts)
    training = training_estimate(recipe, teacher, student, hardware, origin=origin or teacher, cuts=cuts)
    uses = _uses(recipe, teacher, student, tried, cuts)
    hours = _hours(recipe, steps, hardware, training.on(hardware.num_gpus) if training else None)
    return Plan(
        model=recipe.model,
        target=recipe.target,
        rule=target.rule,
        published_shape=target.published,
        teacher=planned_model(teacher),
        student=planned_model(student),
        compression=round(num_parameters(student) / num_parameters(teacher), 4),
        exports=recipe.export_formats(),
        can_be_pruned=teacher.family.prunable,
        text=PlannedTexts(
            calibration=recipe.calibration.data,
            training=_training_text(recipe),
            evaluation=recipe.evaluate.data or f"held-out part of {recipe.distill.mixture()[0].data}",
        ),
        tokens=recipe.distill.tokens,
        out_dir=out_dir,
        disk=uses,
        disk_bytes=peak_disk_bytes(uses),
        memory_bytes=stage_memory(recipe, teacher, student, cuts, tried),
        hours=hours.with_search(search.hours, hardware) if search else hours,
        training=training,
        search=search,
        promise=promise,
        runtime=runtime,
        cuts=cuts,
    )


def _uses(
    recipe: Recipe, teacher: Dims, student: Dims, tried: Sequence[Dims], cuts: Sequence[PlannedCut]
) -> tuple[DiskUse, ...]:
    """What the run writes; whichever of the tried shapes is found can be reached in as many cuts."""
    for shape in tried:
        plan_cuts(recipe, teacher, shape)
    converts = Path(recipe.model).suffix == ".gguf"
    return disk_uses(recipe, teacher, student, converts=converts, tried=tried, cuts=cuts)


def _steps(
    recipe: Recipe, teacher: Dims, student: Dims, cuts: Sequence[PlannedCut]
) -> tuple[tuple[Dims, Dims], ...]:
    """The shapes before and after every cut, each with layers to remove where a recipe measures that."""
    steps = tuple(pairwise((teacher, *(cut.shape for cut in cuts)))) or ((teacher, student),)
    require_depth(recipe.prune, teacher, student)
    for before, after in steps:
        require_depth(of_cut(recipe.prune, before, after), before, after)
    return steps


def _target(recipe: Recipe, teacher: Dims) -> ResolvedTarget:
    """The student that a recipe names by a shape or by a size."""
    rotates = recipe.prune.rotates
    if recipe.prune.shape is not None:
        return resolve_shape(teacher, recipe.prune.shape, rotates=rotates)
    if recipe.target is not None:
        return resolve_target(teacher, recipe.target, rotates=rotates)
    raise UsageError(
        "the size of the student is not given",
        hint="add --target 4b, --target 60% or --shape; a run also takes --target-speedup 2x and its like",
    )


def read_plan(file: Path) -> Plan:
    """The plan that a run left in `file`.

    Raises:
        VerificationError: when it cannot be read.
    """
    what = "the plan"
    hint = "repeat the command that made this run: it writes it"
    return as_record(Plan, read_json_mapping(file, what=what), what=what, where=file, hint=hint)


def require_prunable(teacher: Dims) -> None:
    """Refuse to start what can only be planned.

    Raises:
        UnsupportedError: for a family without pruning support.
    """
    if not teacher.family.prunable:
        raise UnsupportedError(
            f"{teacher.model_type} models can be planned but not pruned yet",
            hint="use `compress-export plan`, which shows the student's shape",
        )


def planned_model(dims: Dims) -> PlannedModel:
    """What follows from a model's dimensions."""
    return PlannedModel(
        dims=dims,
        num_parameters=num_parameters(dims),
        num_non_embedding_parameters=num_non_embedding_parameters(dims),
        weight_bytes={name: weight_bytes(dims, name) for name in ("fp32", "bf16", "fp8", "int4")},
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(dims),
        flops_per_token=flops_per_token(dims),
    )


def _hours(
    recipe: Recipe, steps: Sequence[tuple[Dims, Dims]], hardware: Hardware, row: GpuRow | None
) -> Hours:
    """Hours on the stated hardware: calibration and repairs by their matrix FLOPs, then every training.

    `steps` are the shapes before and after every cut.
    """
    student = steps[-1][1]
    tokens = recipe.calibration.size * recipe.calibration.seq_len
    flops = {"calibration": sum(_scoring_flops(recipe, *step) for step in steps)}
    if recipe.quantize.fp8:
        flops["calibration"] += tokens * flops_per_token(student, recipe.calibration.seq_len // 2)
    if quantizes_teacher(recipe):
        flops["calibration"] += tokens * flops_per_token(steps[0][0], recipe.calibration.seq_len // 2)
    if recipe.repair.enabled:
        flops["reconstruct"] = sum(repair_flops(recipe, *step) for step in steps)
    if recipe.repairs_sparse():
        flops["reconstruct-sparse"] = repair_flops(recipe, student, student)
    if recipe.repairs_fp8():
        flops["reconstruct-fp8"] = fp8_repair_flops(recipe, student)
    rate = hardware.device.bf16_flops_per_s * hardware.utilisation * hardware.num_gpus
    stages = {name: round(count / rate / 3600, 4) for name, count in flops.items()}
    stages |= row.phase_hours if row else {"distill": 0.0}
    gpu_hours = sum(stages.values()) * hardware.num_gpus
    return Hours(
        hardware=f"{hardware.num_gpus} x {hardware.device.name}",
        assumed_utilisation=hardware.utilisation,
        stages=stages,
        gpu_hours=round(gpu_hours, 3),
        cost_usd=round(gpu_hours * hardware.price, 2),
    )


def _scoring_flops(recipe: Recipe, source: Dims, student: Dims) -> float:
    """FLOPs of choosing what stays of a model: its forward passes over the calibration text."""
    calibration, prune = recipe.calibration, recipe.prune
    tokens = calibration.size * calibration.seq_len * scoring_passes(prune)
    measured = min(prune.depth_size, calibration.size) * calibration.seq_len
    passes = tokens + measured * depth_passes(of_cut(prune, source, student), source, student)
    return passes * flops_per_token(source, calibration.seq_len // 2)


def _training_text(recipe: Recipe) -> str:
    """The training text, or every domain with its weight."""
    domains = recipe.distill.domains
    if not domains:
        return recipe.distill.data
    return ", ".join(f"{domain.name}={domain.data}@{domain.weight:g}" for domain in domains)
