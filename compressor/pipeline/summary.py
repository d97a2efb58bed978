"""A run's result as one record, from what its stages recorded: printed by `--json`, told by the card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bench.report.results import Results
from compressor.bundle.lineage import LineageRecord, read_lineage
from compressor.choices.formats import STUDENT_FORMAT
from compressor.core.errors import VerificationError
from compressor.core.hardware import Machine
from compressor.core.json_files import as_record
from compressor.core.records import Record
from compressor.evaluation.chat_record import ChatRecord
from compressor.evaluation.record import EvaluationRecord
from compressor.evaluation.task_record import TasksRecord
from compressor.forecast.record import TrainingForecast
from compressor.gates.record import GateReport
from compressor.pipeline.promise import Measured, check_promise, promise_warnings, shipped_format
from compressor.planning.plan import Plan, read_plan
from compressor.planning.restart import redo_in_run
from compressor.pruning.depth_record import DepthChoice
from compressor.recipe.recipe import Gates, Recipe, load_recipe
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, read_artifact
from compressor.runs.manifest import (
    PLAN_FILE,
    RECIPE_FILE,
    STUDENT,
    ManifestRecord,
    StageEntry,
    read_manifest,
)
from compressor.runs.preflight_record import PreflightRecord
from compressor.search.record import SearchRecord
from exporters.verification.record import ExportRecord

PAGE_FILE = "report.html"  # the run on one page
# Role in the summary -> directory in the run; exports follow, by their format.
PLACES = {
    "search": "stages/search",
    "prune": "stages/prune",
    "reconstruct": "stages/reconstruct",
    "generate": "stages/generate",
    "correct": "stages/correct",
    "distill": "stages/distill",
    "sparsify": "stages/sparsify",
    "reconstruct_sparse": "stages/reconstruct-sparse",
    "recover": "stages/recover",
    "reconstruct_fp8": "stages/reconstruct-fp8",
    "evaluation": "stages/evaluate",
    "evaluated_exports": "stages/evaluate-exports",
    "tasks": "stages/tasks",
    "chat": "stages/chat",
    "bench": "bench",
}
REPAIRS = ("reconstruct", "reconstruct_sparse", "reconstruct_fp8")  # roles that fit layers again
Details = dict[str, JsonValue]
Kind = TypeVar("Kind")


class _Open(Record):
    """A part whose stage records more than is read here; all of it is kept."""

    model_config = ConfigDict(extra="allow")


class PruneRecord(_Open):
    """What the prune stage reports."""

    removed_layers: tuple[int, ...]
    depth: DepthChoice | None = None
    layer_importance: tuple[float, ...] = ()


class RepairCounts(Record):
    """How many linear layers a repair changed, and how many it left: their held-out error did not fall."""

    num_accepted: int
    num_left: int


class RepairRecord(RepairCounts):
    """What a stage that fits layers again reports, of which only the counts are read here."""

    model_config = ConfigDict(extra="allow")


class CutRecord(Record):
    """One of several cuts.

    Attributes:
        name: As in the plan.
        removed_layers: Of the model that was cut.
        layer_importance: Of each layer of the model that was cut, by the method that chose what stays.
        tokens: Trained on after it.
        perplexity: After that training.
        repair: What the repair between both changed; None without one.
    """

    name: str
    removed_layers: tuple[int, ...]
    layer_importance: tuple[float, ...]
    tokens: int
    perplexity: float
    repair: RepairCounts | None = None


class WeightUpdate(_Open):
    """The shares of the domains from one optimizer step on."""

    step: int
    weights: tuple[float, ...]


class DynamicBatchesRecord(_Open):
    """How the shares of the training domains moved."""

    domains: tuple[str, ...]
    updates: tuple[WeightUpdate, ...]


class CurveRecord(_Open):
    """The loss that was trained on: its mean over the steps before each of `steps`."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]


class DistillRecord(_Open):
    """What the distill stage reports."""

    tokens: int
    loss: str
    loss_rule: str
    dynamic_batches: DynamicBatchesRecord | None = None
    forecast: TrainingForecast | None = None
    curve: CurveRecord | None = None


class RunSummary(Record):
    """The result of a run: its plan, and what every stage reports."""

    schema_id: Literal["compress-export/run/2"] = Field("compress-export/run/2", alias="schema")
    out_dir: str
    student: str
    plan: Plan
    stages: dict[str, StageEntry]
    preflight: PreflightRecord | None = None
    search: SearchRecord | None = None
    cuts: tuple[CutRecord, ...] = ()
    prune: PruneRecord | None = None
    reconstruct: RepairRecord | None = None
    generate: Details | None = None
    correct: Details | None = None
    distill: DistillRecord | None = None
    sparsify: Details | None = None
    reconstruct_sparse: RepairRecord | None = None
    recover: Details | None = None
    reconstruct_fp8: RepairRecord | None = None
    evaluation: EvaluationRecord
    evaluated_exports: EvaluationRecord | None = None
    tasks: TasksRecord | None = None
    chat: ChatRecord | None = None
    exports: dict[str, ExportRecord]
    bench: Results | None = None
    promise: Measured | None = None
    gates: GateReport | None = None
    lineage: LineageRecord | None = None
    versions: dict[str, str]
    hardware: Machine
    warnings: tuple[str, ...]


# What a stage reports, by its role; of others it is kept as it is.
_KINDS: dict[str, type[BaseModel]] = {
    "prune": PruneRecord,
    **dict.fromkeys(REPAIRS, RepairRecord),
    "distill": DistillRecord,
    "evaluation": EvaluationRecord,
    "evaluated_exports": EvaluationRecord,
    "tasks": TasksRecord,
    "chat": ChatRecord,
    "bench": Results,
    "search": SearchRecord,
}


def summary_of(
    out_dir: Path,
    *,
    recipe: Recipe,
    plan: Plan,
    manifest: ManifestRecord,
    made: Mapping[str, ModelArtifact],
) -> RunSummary:
    """A run's result, from what its stages recorded: `made` are their artifacts by directory.

    Raises:
        VerificationError: for a record that lacks what a summary needs.
    """
    from exporters.registry import place_of  # with torch, which planning does without

    found = {role: made[place] for role, place in PLACES.items() if place in made}
    if "evaluation" not in found or manifest.hardware is None:
        raise VerificationError(
            "the run's records do not give a summary",
            where=str(out_dir),
            expected="an evaluation, and the machine in the manifest",
            hint="repeat the command that made this run: it finishes it",
        )
    details = {
        role: details_of(artifact, _KINDS[role]) if role in _KINDS else artifact.details
        for role, artifact in found.items()
    }
    exports = {
        name: details_of(made[place_of(name)], ExportRecord)
        for name in dict.fromkeys((STUDENT_FORMAT, *recipe.export_formats()))
    }
    promised = _measured(recipe, plan, made, details.get("bench")) if plan.promise else None
    own_warnings = promise_warnings(plan.promise, promised) if plan.promise and promised else ()
    stage_warnings = (warning for stage in manifest.stages.values() for warning in stage.warnings)
    return RunSummary.model_validate(
        {
            "out_dir": str(out_dir),
            "student": str(out_dir / STUDENT),
            "plan": plan,
            "stages": manifest.stages,
            "preflight": manifest.preflight,
            **details,
            "cuts": _cuts(plan, made),
            "exports": exports,
            "promise": promised,
            "gates": _gates(recipe, plan, made, exports),
            "lineage": read_lineage(out_dir),
            "versions": manifest.versions,
            "hardware": manifest.hardware,
            "warnings": (*manifest.warnings, *stage_warnings, *own_warnings),
        }
    )


def _cuts(plan: Plan, made: Mapping[str, ModelArtifact]) -> tuple[CutRecord, ...]:
    """What each of the plan's cuts left; the last is the run's own pruning and distillation."""
    evaluation = details_of(made[PLACES["evaluation"]], EvaluationRecord).models
    records = []
    for number, cut in enumerate(plan.cuts, start=1):
        is_last = number == len(plan.cuts)
        name, evaluated = ("", "distilled") if is_last else (f"{cut.name}-", cut.name)
        pruned = details_of(made[f"stages/{name}prune"], PruneRecord)
        repaired = made.get(f"stages/{name}reconstruct")
        record = CutRecord(
            name=cut.name,
            removed_layers=pruned.removed_layers,
            layer_importance=pruned.layer_importance,
            tokens=details_of(made[f"stages/{name}distill"], DistillRecord).tokens,
            perplexity=evaluation[evaluated].perplexity,
            repair=_counts(details_of(repaired, RepairRecord)) if repaired else None,
        )
        records.append(record)
    return tuple(records)


def _counts(repair: RepairRecord) -> RepairCounts:
    return RepairCounts(num_accepted=repair.num_accepted, num_left=repair.num_left)


def _gates(
    recipe: Recipe, plan: Plan, made: Mapping[str, ModelArtifact], exports: Mapping[str, ExportRecord]
) -> GateReport | None:
    """The verdicts of the recipe's gates on what the stages left."""
    from compressor.pipeline.gating import judged  # with scipy

    bench, tasks, chat = (made.get(PLACES[role]) for role in ("bench", "tasks", "chat"))
    return judged(
        recipe,
        plan,
        evaluation=details_of(made[PLACES["evaluation"]], EvaluationRecord),
        exports=exports,
        bench=details_of(bench, Results) if bench else None,
        tasks=details_of(tasks, TasksRecord) if tasks else None,
        chat=details_of(chat, ChatRecord) if chat else None,
        made=made,
    )


def _measured(recipe: Recipe, plan: Plan, made: Mapping[str, ModelArtifact], bench: object) -> Measured:
    """The plan's promise, which there is, against what the stages left."""
    from exporters.registry import place_of  # with torch

    assert plan.promise is not None
    shipped = made.get(place_of(shipped_format(recipe.quantize)))
    return check_promise(
        plan.promise,
        student=plan.student.dims,
        checkpoint=shipped.path if shipped else None,
        quantize=recipe.quantize,
        bench=bench if isinstance(bench, Results) else None,
    )


def repairs_of(summary: RunSummary) -> dict[str, RepairCounts]:
    """What every repair of a run changed, by the directory of its stage, in the order of the run."""
    found = {f"stages/{cut.name}-reconstruct": cut.repair for cut in summary.cuts[:-1]}
    found |= {PLACES[role]: getattr(summary, role) for role in REPAIRS}
    return {place: counts for place, counts in found.items() if counts is not None}


def read_summary(out_dir: Path, *, gates: Gates | None = None) -> RunSummary:
    """The result of a finished run, read from its records; with other `gates` than its recipe's, by these.

    Raises:
        UsageError, VerificationError: for a record that is not there or cannot be used.
    """
    from exporters.checks.run import demanded  # with torch

    recipe = load_recipe(out_dir / RECIPE_FILE, {})
    recipe = recipe if gates is None else recipe.model_copy(update={"gates": gates})
    made = {place: read_artifact(out_dir / place, redo=redo_in_run) for place in demanded(recipe)}
    plan, manifest = read_plan(out_dir / PLAN_FILE), read_manifest(out_dir)
    with fitting(out_dir):
        return summary_of(out_dir, recipe=recipe, plan=plan, manifest=manifest, made=made)


@contextmanager
def fitting(out_dir: Path) -> Iterator[None]:
    """Refuse records that contradict each other: one lacks what another names, or holds no possible number.

    Raises:
        VerificationError: for what a record that was written by a run cannot lead to.
    """
    try:
        yield
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        raise VerificationError(
            "the run's records do not fit together",
            where=str(out_dir),
            found=f"{type(error).__name__}: {error}",
            hint="repeat the command that made this run with --restart-from the stage that was edited",
        ) from error


def details_of(artifact: ModelArtifact, kind: type[Kind]) -> Kind:
    """What a stage reports of itself, as a record.

    Raises:
        VerificationError: naming the first field that is not as it was written.
    """
    file = artifact.path / ARTIFACT_FILE
    hint = "the same command with --restart-from this stage"
    return as_record(kind, artifact.details, what="what this stage reports", where=file, hint=hint)
