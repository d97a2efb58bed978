"""A run's result as one record, from what its stages recorded: printed by `--json`, told by the card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bench.report.results import Results
from compressor.choices.formats import STUDENT_FORMAT
from compressor.core.errors import VerificationError
from compressor.core.hardware import Machine
from compressor.core.json_files import as_record
from compressor.core.records import Record
from compressor.evaluation.record import EvaluationRecord
from compressor.pipeline.promise import Measured, check_promise, promise_warnings, shipped_format
from compressor.planning.plan import Plan, read_plan
from compressor.pruning.depth_record import DepthChoice
from compressor.recipe.recipe import Recipe, load_recipe
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, read_artifact
from compressor.runs.manifest import (
    PLAN_FILE,
    RECIPE_FILE,
    STUDENT,
    ManifestRecord,
    StageEntry,
    read_manifest,
)
from compressor.search.record import SearchRecord
from exporters.verification.record import ExportRecord

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
    "evaluation": "stages/evaluate",
    "bench": "bench",
}
Details = dict[str, JsonValue]
Kind = TypeVar("Kind")


class _Open(Record):
    """A part whose stage records more than is read here; all of it is kept."""

    model_config = ConfigDict(extra="allow")


class PruneRecord(_Open):
    """What the prune stage reports."""

    removed_layers: tuple[int, ...]
    depth: DepthChoice | None = None


class WeightUpdate(_Open):
    """The shares of the domains from one optimizer step on."""

    step: int
    weights: tuple[float, ...]


class DynamicBatchesRecord(_Open):
    """How the shares of the training domains moved."""

    domains: tuple[str, ...]
    updates: tuple[WeightUpdate, ...]


class DistillRecord(_Open):
    """What the distill stage reports."""

    tokens: int
    loss: str
    loss_rule: str
    dynamic_batches: DynamicBatchesRecord | None = None


class RunSummary(Record):
    """The result of a run: its plan, and what every stage reports."""

    schema_id: Literal["compress-export/run/2"] = Field("compress-export/run/2", alias="schema")
    out_dir: str
    student: str
    plan: Plan
    stages: dict[str, StageEntry]
    search: SearchRecord | None = None
    prune: PruneRecord | None = None
    reconstruct: Details | None = None
    generate: Details | None = None
    correct: Details | None = None
    distill: DistillRecord | None = None
    sparsify: Details | None = None
    reconstruct_sparse: Details | None = None
    recover: Details | None = None
    evaluation: EvaluationRecord
    exports: dict[str, ExportRecord]
    bench: Results | None = None
    promise: Measured | None = None
    versions: dict[str, str]
    hardware: Machine
    warnings: tuple[str, ...]


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
    kinds: dict[str, type[BaseModel]] = {
        "prune": PruneRecord,
        "distill": DistillRecord,
        "evaluation": EvaluationRecord,
        "bench": Results,
        "search": SearchRecord,
    }
    details = {
        role: details_of(artifact, kinds[role]) if role in kinds else artifact.details
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
            **details,
            "exports": exports,
            "promise": promised,
            "versions": manifest.versions,
            "hardware": manifest.hardware,
            "warnings": (*manifest.warnings, *stage_warnings, *own_warnings),
        }
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


def read_summary(out_dir: Path) -> RunSummary:
    """The result of a finished run, read from its records.

    Raises:
        UsageError, VerificationError: for a record that is not there or cannot be used.
    """
    from exporters.checks.run import demanded  # with torch

    recipe = load_recipe(out_dir / RECIPE_FILE, {})
    made = {place: read_artifact(out_dir / place) for place in demanded(recipe)}
    plan, manifest = read_plan(out_dir / PLAN_FILE), read_manifest(out_dir)
    return summary_of(out_dir, recipe=recipe, plan=plan, manifest=manifest, made=made)


def details_of(artifact: ModelArtifact, kind: type[Kind]) -> Kind:
    """What a stage reports of itself, as a record.

    Raises:
        VerificationError: naming the first field that is not as it was written.
    """
    file = artifact.path / ARTIFACT_FILE
    hint = "the same command with --restart-from this stage"
    return as_record(kind, artifact.details, what="what this stage reports", where=file, hint=hint)
