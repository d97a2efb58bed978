"""The prune stage: score, plan, slice."""

from __future__ import annotations

from pathlib import Path

import torch

from compressor.calibration.text import read_calibration
from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UnsupportedError, UsageError
from compressor.data.calibration import CalibrationWindows
from compressor.data.sources import source_fingerprint
from compressor.models.checkpoint import read_config
from compressor.models.dims import PRUNABLE_FIELDS, Dims, check_shape, dims_of_config
from compressor.models.families import FAMILIES
from compressor.models.memory import require_model_memory
from compressor.models.presets import preset_of_dims
from compressor.models.sparse.low_rank import refuse_adapter
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.pruning.importance import IMPORTANCE_FILE, ImportanceScores, ScoringInputs
from compressor.pruning.plan import PrunePlan, make_plan
from compressor.pruning.rotation import find_rotation, rotation_of
from compressor.pruning.slicing import slice_checkpoint
from compressor.recipe.option import content_of, option
from compressor.recipe.recipe import Calibration, Prune, Section
from compressor.runs.artifact import ModelArtifact, sha256_of_file
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh


class PruneStageConfig(Section):
    """The student's resolved shape and how units are scored; or a plan, by which nothing is scored."""

    shape: dict[str, int]
    prune: Prune
    calibration: Calibration
    plan: PrunePlan | None = None
    scores_sha256: str | None = None
    plan_directory: str = option("", "Where the given plan was, and its rotation is.", course=True)

    @property
    def needs_text(self) -> bool:
        """Whether units are scored, by a method that reads text."""
        is_measured = self.plan is None and self.prune.scores is None
        return is_measured and IMPORTANCE_METHODS[self.prune.importance].needs_text

    @property
    def rotates(self) -> bool:
        """Whether the hidden size is reduced by a rotation that is found here."""
        return self.plan is None and self.prune.rotates

    @property
    def reads_text(self) -> bool:
        """Whether the calibration text decides anything."""
        return self.needs_text or self.rotates


_MEASURED = ("importance", "batch_aggregation", "sequence_aggregation")


def published_layers(source: Dims, student: Dims) -> tuple[int, ...]:
    """The layers that the publication of this student removed from this source; none where it names none."""
    known, made = preset_of_dims(source), preset_of_dims(student)
    return made.removed_layers if known and made and made.alias in known.targets.values() else ()


def stage_config(student: Dims, settings: Prune, calibration: Calibration) -> PruneStageConfig:
    """The configuration that makes this student.

    Raises:
        UsageError: for saved scores that are not there, or beside a choice of how to measure them.
    """
    scores = Path(settings.scores) / IMPORTANCE_FILE if settings.scores else None
    if scores and not scores.is_file():
        raise UsageError(
            "there are no saved scores",
            where=str(scores),
            hint=f"give --scores a directory in which `compress-export prune` left {IMPORTANCE_FILE}",
        )
    measured = [name for name in _MEASURED if getattr(settings, name) != getattr(Prune(), name)]
    if scores and measured:
        raise UsageError(
            "saved scores are not measured again, so these choices have no effect",
            where=", ".join(f"prune.{name}" for name in measured),
            hint="leave them out, or leave out --scores",
        )
    return PruneStageConfig(
        shape={name: getattr(student, name) for name in PRUNABLE_FIELDS},
        prune=settings.model_copy(update={"shape": None}),
        calibration=calibration,
        scores_sha256=sha256_of_file(scores) if scores else None,
    )


def run(config: PruneStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Score all units and plan, unless a plan is given; slice the checkpoint by it."""
    start_afresh(out_dir)
    dims = dims_of_config(read_config(source.path))
    if not dims.family.prunable:
        raise UnsupportedError(
            f"{dims.model_type} models can be planned but not pruned yet",
            where=str(source.path),
            hint=f"prune one of {', '.join(name for name, family in FAMILIES.items() if family.prunable)}",
        )
    refuse_adapter(source.path, by="pruning")
    plan, windows = config.plan, None
    student = dims.with_shape(**config.shape) if plan is None else plan.student
    check_shape(student)
    if config.reads_text:
        windows = read_calibration(config.calibration, source.path, context)
    if plan is None:
        scores = _scores(config, source, dims, context, windows)
        scores.save(out_dir)
        plan = make_plan(
            dims,
            student,
            scores,
            importance="saved scores" if config.prune.scores else config.prune.importance,
            depth=config.prune.depth,
            removed_layers=published_layers(dims, student) if config.prune.depth == "contiguous" else (),
        )
    rotation = rotation_of(Path(config.plan_directory), plan)
    if config.rotates and windows is not None:
        rotation = find_rotation(source.path, plan, windows.ids, context)
    if rotation is not None:
        plan = plan.rotated(rotation.save(out_dir))
    plan.write(out_dir)
    with context.console.progress("slicing", len(plan.student.weights())) as tick:
        num_parameters = slice_checkpoint(
            source.path,
            plan,
            out_dir,
            dtype=getattr(torch, context.dtype),
            rotation=rotation,
            on_tensor=tick,
        )
    copy_tokenizer(source.path, out_dir)
    removed = sorted(set(range(dims.num_hidden_layers)) - set(plan.layers))
    details: dict[str, object] = {"removed_layers": removed, "importance": plan.importance}
    if rotation is not None:
        details["hidden_variance_kept"] = round(rotation.kept_variance(plan), 6)
    if windows is not None:
        details["calibration"] = windows.record
    return StageResult(num_parameters=num_parameters, details=details)


def _scores(
    config: PruneStageConfig,
    source: ModelArtifact,
    dims: Dims,
    context: StageContext,
    windows: CalibrationWindows | None,
) -> ImportanceScores:
    """The scores, saved or measured."""
    if config.prune.scores:
        return ImportanceScores.load(Path(config.prune.scores), dims)
    ids = windows.ids if windows and config.needs_text else None
    inputs = ScoringInputs(
        checkpoint=source.path, dims=dims, settings=config.prune, context=context, windows=ids
    )
    scores: ImportanceScores = IMPORTANCE_METHODS[config.prune.importance].load()(inputs)
    return scores


def _content(config: PruneStageConfig) -> dict[str, object]:
    """What decides the student; how the hidden size is reduced only where it is by rotation.

    So a student that was made before there was this choice is known as what it is.
    """
    content = content_of(config)
    if not config.prune.rotates and isinstance(prune := content["prune"], dict):
        del prune["hidden"]
    return content


def _require_memory(config: PruneStageConfig, source: ModelArtifact, context: StageContext) -> None:
    if config.reads_text:
        require_model_memory((source.path, context.dtype), device=context.device)


PRUNE: Stage[PruneStageConfig] = Stage(
    name="prune",
    run=run,
    format_version=4,
    data=lambda config: (config.calibration.data,) if config.reads_text else (),
    fingerprint=source_fingerprint,
    content=_content,
    require_memory=_require_memory,
)
