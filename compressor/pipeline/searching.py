"""The search of a run: its winner becomes the shape of the run's student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.checkpoint import read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.pipeline.bench_plan import with_bench
from compressor.pipeline.preflight import evaluation_config
from compressor.pipeline.running import Run
from compressor.pipeline.summary import details_of
from compressor.planning.depth import of_cut
from compressor.planning.plan import make_plan
from compressor.planning.target import ResolvedTarget
from compressor.pruning.prune_stage import PruneStageConfig, saved_scores, stage_config
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage
from compressor.search.record import SearchRecord
from compressor.search.stages import prune_config
from compressor.search.trials import SCORES, SEARCH, SearchWork


def search_(run: Run) -> None:
    """Try the shapes of the run's plan, and plan again with the best; nothing without a search."""
    if run.plan.search is None:
        return

    def work(
        stage: Stage[Any], config: Any, name: str, *, others: Mapping[str, ModelArtifact]
    ) -> ModelArtifact:
        where = f"stages/{name}"
        return run.execute(stage, config, run.teacher, SEARCH, makes=name, where=where, others=dict(others))

    evaluation = evaluation_config(run.recipe, run.teacher.texts)
    todo = SearchWork(recipe=run.recipe, plan=run.plan.search, evaluation=evaluation, work=work)
    record = details_of(todo.comparison(), SearchRecord)
    found = ResolvedTarget(
        student=record.winner.shape, rule=record.reason, requested_parameters=record.requested_parameters
    )
    planned = run.plan
    made = make_plan(
        run.recipe, planned.teacher.dims, out_dir=planned.out_dir, found=found, runtime=planned.runtime
    )
    run.plan = with_bench(made, run.recipe, None).model_copy(update={"preflight": planned.preflight})
    run.console.info(f"search: {record.winner.name}: {record.reason}")


def pruning(
    run: Run, student: Dims, source: ModelArtifact
) -> tuple[PruneStageConfig, dict[str, ModelArtifact]]:
    """How a student is cut from a source, and what that reads: after a search, the scores of the teacher."""
    scores = run.made.get(SCORES) if source is run.teacher else None
    if scores is None:
        prune = of_cut(run.recipe.prune, dims_of_config(read_config(source.path)), student)
        return stage_config(student, prune, run.recipe.calibration), saved_scores(prune)
    return prune_config(run.recipe, student, scores), {SCORES: scores}
