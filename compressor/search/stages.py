"""The stages of a search: importance once, one short trial of every shape, and the comparison.

A trial is pruning, repair, training and evaluation in directories of their own, so that an interrupted one
goes on where it was. They are deleted when the trial is finished: only what was measured stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.bench_stage import SCRATCH
from bench.design.grid import grid_of
from bench.machine.machine_rates import machine_rates
from bench.machine.roofline import compute_precision
from compressor.core.json_files import read_json_mapping
from compressor.core.processes import on_main
from compressor.data.sources import source_fingerprint
from compressor.distillation.distill_stage import DISTILL
from compressor.evaluation.evaluate_stage import EVALUATE, EvaluateStageConfig
from compressor.evaluation.record import EvaluationRecord
from compressor.models.checkpoint import read_config
from compressor.models.dims import PRUNABLE_FIELDS, Dims, dims_of_config, num_parameters
from compressor.planning.search_plan import SearchPlan, name_of
from compressor.planning.search_space import Excluded
from compressor.pruning.prune_stage import PRUNE, PruneStageConfig, scores_of
from compressor.pruning.saved import IMPORTANCE_FILE, scores_file
from compressor.recipe.recipe import Distill, Recipe, Search, Section
from compressor.repair.reconstruct_stage import RECONSTRUCT, ReconstructStageConfig
from compressor.runs.artifact import ModelArtifact, sha256_of_file, write_json
from compressor.runs.stage import Stage, StageContext, StageResult, execute, start_afresh
from compressor.search.predict import predicted_speedup
from compressor.search.record import SEARCH_FILE, MeasuredShape, SearchRecord, rank

TRIAL_FILE = "trial.json"
_REPAIRED, _DISTILLED = "reconstructed", "distilled"


class TrialConfig(Section):
    """How one shape is tried; the same for all but the shape."""

    pruning: PruneStageConfig
    repair: ReconstructStageConfig | None
    training: Distill
    evaluation: EvaluateStageConfig


class SearchStageConfig(Section):
    """What was asked for, the list that the shapes were taken from, and what speed is predicted for."""

    search: Search
    target: str
    requested_parameters: int
    tolerance: float
    num_shapes: int
    excluded: tuple[Excluded, ...]
    default: Dims
    cells: tuple[tuple[int, int, int], ...]


def scores_config(recipe: Recipe) -> PruneStageConfig:
    """How the importance of all units is measured, for every shape of the search at once."""
    saved = scores_file(recipe.prune)
    return PruneStageConfig(
        shape={},
        prune=recipe.prune,
        calibration=recipe.calibration,
        scores_sha256=sha256_of_file(saved) if saved else None,
    )


def prune_config(recipe: Recipe, student: Dims, scores: ModelArtifact) -> PruneStageConfig:
    """How a shape is cut out of the teacher by scores that are there already."""
    return PruneStageConfig(
        shape={name: getattr(student, name) for name in PRUNABLE_FIELDS},
        prune=recipe.prune.model_copy(update={"shape": None, "scores": str(scores.path)}),
        calibration=recipe.calibration,
        scores_sha256=sha256_of_file(scores.path / IMPORTANCE_FILE),
    )


def trial_config(
    recipe: Recipe, student: Dims, scores: ModelArtifact, evaluation: EvaluateStageConfig
) -> TrialConfig:
    """How a shape is tried with the run's own settings, trained shortly."""
    repair = ReconstructStageConfig(calibration=recipe.repair_calibration(), steps=recipe.repair.steps)
    return TrialConfig(
        pruning=prune_config(recipe, student, scores),
        repair=repair if recipe.repair.enabled else None,
        training=recipe.search.training(recipe.distill),
        evaluation=evaluation,
    )


def search_config(recipe: Recipe, plan: SearchPlan) -> SearchStageConfig:
    """How the shapes of a plan are compared."""
    grid = ((cell.isl, cell.osl, cell.batch_size) for cell in grid_of(recipe.bench))
    return SearchStageConfig(
        search=recipe.search,
        target=recipe.target or "",
        requested_parameters=plan.requested_parameters,
        tolerance=plan.tolerance,
        num_shapes=plan.num_shapes,
        excluded=plan.excluded,
        default=plan.default,
        cells=tuple(dict.fromkeys(grid)),
    )


def _measure(
    config: PruneStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Score all units once; the scores are those of the prune stage."""
    on_main(lambda: start_afresh(out_dir))
    scores, details = scores_of(config, source, context)
    on_main(lambda: scores.save(out_dir))
    details["importance"] = "saved scores" if config.prune.scores else config.prune.importance
    return StageResult(num_parameters=source.num_parameters, details=details)


def _try(config: TrialConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Prune, repair, train and evaluate one shape; only the measurements stay."""
    file = out_dir / TRIAL_FILE
    if not on_main(file.is_file):
        found = _measured_models(config, source, out_dir, context)
        on_main(lambda: write_json(file, found))
    on_main(lambda: start_afresh(out_dir, but=(TRIAL_FILE,)))
    trial = read_json_mapping(file, what="a trial's measurements")
    return StageResult(num_parameters=int(trial["num_parameters"]), details=dict(trial))


def _measured_models(
    config: TrialConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> dict[str, object]:
    """What came out of one shape, stage by stage."""

    def work(
        stage: Stage[Any], own: Any, of: ModelArtifact, *, others: Mapping[str, ModelArtifact] | None = None
    ) -> ModelArtifact:
        beside = replace(
            context,
            teacher=source if stage in (RECONSTRUCT, DISTILL) else None,
            others=dict(others or {}),
            redo=lambda _stage, _path: context.redo(TRIAL.name, out_dir),
            before=lambda: None,
        )
        return execute(stage, own, of, out_dir / stage.name, beside).artifact

    pruned = work(PRUNE, config.pruning, source, others=context.others)
    repaired = pruned if config.repair is None else work(RECONSTRUCT, config.repair, pruned)
    distilled = work(DISTILL, config.training, repaired)
    models = {_DISTILLED: distilled} if repaired is pruned else {_REPAIRED: repaired, _DISTILLED: distilled}
    evaluated = work(EVALUATE, config.evaluation, distilled, others=models)
    return {
        "shape": config.pruning.shape,
        "num_parameters": distilled.num_parameters,
        "tokens": distilled.details["tokens"],
        "evaluation": evaluated.details,
    }


def _compare(
    config: SearchStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Rank the trials in `context.others`."""
    start_afresh(out_dir)
    teacher = dims_of_config(read_config(source.path))
    precision = "fp32" if context.device == "cpu" else "bf16"
    kept = out_dir.absolute().parent / SCRATCH
    rates = machine_rates(kept, device=context.device, precisions=[compute_precision(precision) or precision])

    def speedup(shape: Dims) -> float:
        found = predicted_speedup(teacher, shape, cells=config.cells, rates=rates, precision=precision)
        return float(f"{found:.6g}")

    trials = list(context.others.values())
    evaluations = [EvaluationRecord.model_validate(trial.details["evaluation"]) for trial in trials]
    measured = []
    for trial, evaluation in zip(trials, evaluations, strict=True):
        shape = teacher.with_shape(**trial.details["shape"])
        repaired, distilled = evaluation.models.get(_REPAIRED), evaluation.models[_DISTILLED]
        one = MeasuredShape(
            name=name_of(shape),
            shape=shape,
            num_parameters=num_parameters(shape),
            predicted_speedup=speedup(shape),
            perplexity_repaired=None if repaired is None else repaired.perplexity,
            perplexity=distilled.perplexity,
            mean_nll=distilled.mean_nll,
        )
        measured.append(one)
    reference = speedup(config.default)
    record = SearchRecord(
        **config.model_dump(exclude={"search", "default", "excluded"}),
        excluded=config.excluded,
        default=config.default,
        tokens=trials[0].details["tokens"],
        reference_speedup=reference,
        precision=precision,
        rates=rates,
        protocol=evaluations[0].protocol,
        shapes=rank(measured, default=config.default, reference_speedup=reference),
    )
    write_json(out_dir / SEARCH_FILE, record.to_json())
    return StageResult(num_parameters=record.winner.num_parameters, details=record.to_json())


def _texts_of_trial(config: TrialConfig) -> tuple[str, ...]:
    repair = RECONSTRUCT.data(config.repair) if config.repair else ()
    return (*repair, *DISTILL.data(config.training), *EVALUATE.data(config.evaluation))


MEASURE: Stage[PruneStageConfig] = Stage(
    name="search-scores",
    run=_measure,
    data=PRUNE.data,
    fingerprint=source_fingerprint,
    content=PRUNE.content,
    parallel=True,
    require_memory=PRUNE.require_memory,
)
TRIAL: Stage[TrialConfig] = Stage(
    name="search-trial",
    run=_try,
    libraries=("torch", "transformers", "accelerate"),
    data=_texts_of_trial,
    fingerprint=source_fingerprint,
    parallel=True,
)
COMPARE: Stage[SearchStageConfig] = Stage(name="search", run=_compare)
