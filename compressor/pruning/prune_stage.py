"""The prune stage: score, plan, slice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from compressor.calibration.text import read_calibration
from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UnsupportedError, UsageError
from compressor.core.processes import on_main
from compressor.data.depth_task import task_sha256
from compressor.data.sources import source_fingerprint
from compressor.data.tokenise import TokenArray
from compressor.models.checkpoint import read_config
from compressor.models.dims import GROUP_FIELDS, PRUNABLE_FIELDS, Dims, check_shape, dims_of_config
from compressor.models.families import FAMILIES
from compressor.models.memory import require_gradient_memory, require_model_memory
from compressor.models.sparse.low_rank import refuse_adapter
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.planning.depth import published_layers, removal
from compressor.pruning.depth import choose_layers, encoded_questions
from compressor.pruning.depth_page import render_page
from compressor.pruning.depth_record import DEPTH_FILE, PAGE_FILE
from compressor.pruning.importance import ImportanceScores, ScoringInputs
from compressor.pruning.plan import PrunePlan, make_plan
from compressor.pruning.rotation import Rotation, find_rotation, rotation_of
from compressor.pruning.saved import scores_file
from compressor.pruning.slicing import slice_checkpoint
from compressor.recipe.option import content_of, option, unless_neutral
from compressor.recipe.recipe import Calibration, Prune, Section
from compressor.runs.artifact import (
    ARTIFACT_FILE,
    ModelArtifact,
    read_artifact,
    sha256_of_file,
    write_json,
    write_text,
)
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh


class PruneStageConfig(Section):
    """The student's resolved shape and how units are scored; or a plan, by which nothing is scored."""

    shape: dict[str, int]
    prune: Prune
    calibration: Calibration
    plan: PrunePlan | None = None
    scores_sha256: str | None = None
    plan_directory: str = option("", "Where the given plan was, and its rotation is.", course=True)
    task_sha256: str | None = None

    @property
    def scores_by_text(self) -> bool:
        """Whether units are scored, by a method that reads text."""
        is_measured = self.plan is None and self.prune.scores is None
        return is_measured and IMPORTANCE_METHODS[self.prune.importance].needs_text

    @property
    def rotates(self) -> bool:
        """Whether the hidden size is reduced by a rotation that is found here."""
        return self.plan is None and self.prune.rotates

    @property
    def measures_depth(self) -> bool:
        """Whether removed layers are chosen by what the model loses without them."""
        return self.plan is None and self.prune.measures_depth

    @property
    def needs_text(self) -> bool:
        """Whether calibration text is read."""
        return self.scores_by_text or self.measures_depth or self.rotates

    def content(self) -> dict[str, object]:
        """What decides the student; how layers and hidden size are reduced only where not as ever."""
        prune = unless_neutral(content_of(self.prune), hidden="channels")
        if not self.measures_depth:
            prune = {name: value for name, value in prune.items() if name not in _DEPTH}
        return {**content_of(self), "prune": prune}


# Role of the output that scores were saved in.
_SCORES = "scores"
_DEPTH = ("depth_importance", "depth_size", "depth_curve")


def stage_config(student: Dims, settings: Prune, calibration: Calibration) -> PruneStageConfig:
    """The configuration that makes this student.

    Raises:
        UsageError, DependencyError, UnsupportedError: as `scores_file` and `task_sha256` do.
    """
    scores = scores_file(settings)
    groups = [name for name in GROUP_FIELDS if name in (settings.shape or {})]
    return PruneStageConfig(
        shape={name: getattr(student, name) for name in (*PRUNABLE_FIELDS, *groups)},
        prune=settings.model_copy(update={"shape": None}),
        calibration=calibration,
        scores_sha256=sha256_of_file(scores) if scores else None,
        task_sha256=task_sha256(settings.depth_task) if settings.depth_task else None,
    )


def saved_scores(settings: Prune) -> dict[str, ModelArtifact]:
    """The output that scores were saved in, for a stage to read: it says on which text they were measured."""
    if settings.scores is None or not (Path(settings.scores) / ARTIFACT_FILE).is_file():
        return {}
    return {_SCORES: read_artifact(Path(settings.scores))}


def run(config: PruneStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Score all units and plan, unless a plan is given; slice the checkpoint by it.

    All processes of a run score; the main one does the rest.
    """
    on_main(lambda: start_afresh(out_dir))
    dims = dims_of_config(read_config(source.path))
    if not dims.family.prunable:
        raise UnsupportedError(
            f"{dims.model_type} models can be planned but not pruned yet",
            where=str(source.path),
            hint=f"prune one of {', '.join(name for name, family in FAMILIES.items() if family.prunable)}",
        )
    refuse_adapter(source.path, by="pruning")
    plan, details = config.plan, dict[str, object]()
    student = dims.with_shape(**config.shape) if plan is None else plan.student
    check_shape(student)
    windows = _windows(config, source, context, details)
    if plan is None:
        plan = _chosen(config, source, student, out_dir, context, windows, details)
    rotation = _rotation(config, plan, source, context, windows)
    if rotation is not None:
        plan = plan.rotated(on_main(partial(rotation.save, out_dir)))
        details["hidden_variance_kept"] = round(rotation.kept_variance(plan), 6)
    num_parameters = on_main(partial(_slice, plan, rotation, source, out_dir, context))
    removed = sorted(set(range(dims.num_hidden_layers)) - set(plan.layers))
    chosen = {"removed_layers": removed, "importance": plan.importance}
    return StageResult(num_parameters=num_parameters, details={**chosen, **details})


def _slice(
    plan: PrunePlan, rotation: Rotation | None, source: ModelArtifact, out_dir: Path, context: StageContext
) -> int:
    """Write the plan and what it keeps of the source; returns the number of parameters."""
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
    return num_parameters


def _windows(
    config: PruneStageConfig, source: ModelArtifact, context: StageContext, details: dict[str, object]
) -> TokenArray | None:
    """The calibration sequences, if any are read; adds to the details which they are."""
    if not config.needs_text:
        return None
    calibration = config.calibration
    if not (config.scores_by_text or config.rotates):
        size = min(config.prune.depth_size, calibration.size)
        calibration = calibration.model_copy(update={"size": size})
    found = on_main(partial(read_calibration, calibration, source.path, context))
    details["calibration"] = found.record
    return found.ids


def _rotation(
    config: PruneStageConfig,
    plan: PrunePlan,
    source: ModelArtifact,
    context: StageContext,
    windows: TokenArray | None,
) -> Rotation | None:
    """The rotation that a given plan names, or the one that is asked for."""
    if not config.rotates:
        return on_main(partial(rotation_of, Path(config.plan_directory), plan))
    assert windows is not None
    return on_main(partial(find_rotation, source.path, plan, windows, context))


def _chosen(
    config: PruneStageConfig,
    source: ModelArtifact,
    student: Dims,
    out_dir: Path,
    context: StageContext,
    windows: TokenArray | None,
    details: dict[str, object],
) -> PrunePlan:
    """Choose what stays; writes what was measured."""
    settings, dims = config.prune, dims_of_config(read_config(source.path))
    # Before any model is loaded: a question may be none to its tokenizer.
    questions = encoded_questions(source.path, settings, context) if config.measures_depth else ()
    scores = _scores(config, source, dims, windows, context)
    on_main(lambda: scores.save(out_dir))
    details["layer_importance"] = scores.of_layers()
    removed = published_layers(settings, dims, student)
    if config.measures_depth:
        assert windows is not None
        depth = choose_layers(source.path, dims, student, settings, windows, context, questions=questions)
        on_main(lambda: write_json(out_dir / DEPTH_FILE, depth.to_json()))
        on_main(lambda: write_text(out_dir / PAGE_FILE, render_page(depth)))
        removed, details["depth"] = depth.removed_layers, depth.choice.to_json()
    return make_plan(
        dims,
        student,
        scores,
        importance="saved scores" if settings.scores else settings.importance,
        depth=removal(settings, dims, student),
        removed_layers=removed,
    )


def scores_of(
    config: PruneStageConfig, source: ModelArtifact, context: StageContext
) -> tuple[ImportanceScores, dict[str, object]]:
    """The scores, saved or measured, and the record of the text that set them."""
    details: dict[str, object] = {}
    windows = _windows(config, source, context, details)
    return _scores(config, source, dims_of_config(read_config(source.path)), windows, context), details


def _scores(
    config: PruneStageConfig,
    source: ModelArtifact,
    dims: Dims,
    windows: TokenArray | None,
    context: StageContext,
) -> ImportanceScores:
    """The scores, saved or measured."""
    if config.prune.scores:
        saved = Path(config.prune.scores)
        _require_own_scores(saved, source, context)
        return on_main(lambda: ImportanceScores.load(saved, dims))
    method = IMPORTANCE_METHODS[config.prune.importance]
    inputs = ScoringInputs(
        checkpoint=source.path,
        dims=dims,
        settings=config.prune,
        context=context,
        windows=windows if method.needs_text else None,
    )
    work: Callable[[], ImportanceScores] = partial(method.load(), inputs)
    return work() if method.needs_text else on_main(work)


def _require_own_scores(saved: Path, source: ModelArtifact, context: StageContext) -> None:
    """Refuse scores that say themselves that they are another model's, such as one of the same shape."""
    measured = context.others.get(_SCORES)
    if measured is not None and measured.inputs.get("source") != source.fingerprint:
        raise UsageError(
            "these scores are of another model",
            where=str(saved),
            expected=f"scores of the model at {source.path}",
            hint="leave out --scores to measure them, or give the output of a prune of this model",
        )


def _require_memory(config: PruneStageConfig, source: ModelArtifact, context: StageContext) -> None:
    if config.needs_text:
        require_model_memory((source.path, context.dtype), device=context.device)
    if config.scores_by_text and IMPORTANCE_METHODS[config.prune.importance].needs_gradients:
        require_gradient_memory(source.path, device=context.device)


PRUNE: Stage[PruneStageConfig] = Stage(
    name="prune",
    run=run,
    format_version=4,
    data=lambda config: (config.calibration.data,) if config.needs_text else (),
    fingerprint=source_fingerprint,
    content=PruneStageConfig.content,
    parallel=True,
    require_memory=_require_memory,
)
