"""A search by itself: it tries shapes of a target's size, and says which is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.api.execution import SCRATCH, Execution, require
from compressor.core.processes import on_main
from compressor.core.records import Record
from compressor.planning.search_plan import SearchPlan, name_of
from compressor.recipe.recipe import Recipe
from compressor.recipe.search import DEFAULT_CANDIDATES
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact

if TYPE_CHECKING:
    from compressor.models.dims import Dims


class SearchShare(Record):
    """What is there of a search that is done in shares: names of shapes."""

    done: tuple[str, ...]
    left: tuple[str, ...]


def search(
    recipe: Recipe,
    out_dir: Path,
    *,
    shard: tuple[int, int] | None = None,
    execution: Execution | None = None,
) -> ModelArtifact | SearchShare:
    """Try several shapes of the recipe's target: prune, repair and train each shortly, and rank them.

    An interrupted search goes on with the shape that it was at. With a `shard`, (1, 4) being the first of
    four, only that share is tried, and what is there and what is left is returned; without one, every shape
    that is left is tried and all are compared. Trials are kept beside `out_dir`.

    Raises:
        UsageError: for a target or settings that leave nothing to search, or to resume.
    """
    from compressor.models.source import resolve_source, source_dims
    from compressor.pipeline.preflight import evaluation_config
    from compressor.planning.plan import require_prunable
    from compressor.search.trials import SCORES, SEARCH, SearchWork

    execution = execution or Execution()
    recipe = _with_candidates(recipe)
    teacher = source_dims(resolve_source(recipe.model))
    require_prunable(teacher)
    plan = _planned(recipe, teacher, out_dir)
    trials = out_dir.absolute().parent / SCRATCH / f"{out_dir.name}-{SEARCH}"
    require(
        shard is None or not execution.overwrite,
        "a share cannot start over: the others may be at work on the same search",
        where="--shard, --overwrite",
        hint=f"delete {trials} before the first share, and leave --overwrite out",
    )
    _begin(recipe, out_dir, trials, execution)
    source = execution.open(recipe.model, out_dir)
    on_main(lambda: _check_source(recipe, plan, source))

    def work(stage: Any, config: Any, name: str, *, others: Mapping[str, ModelArtifact]) -> ModelArtifact:
        where = out_dir if name == SEARCH else trials / name
        # What there is to resume was looked for at the beginning.
        how = execution.beside()
        return how.run(stage, config, source, where, others=others, wait=name == SCORES)

    evaluation = evaluation_config(recipe, source.texts)
    todo = SearchWork(recipe=recipe, plan=plan, evaluation=evaluation, work=work)
    if shard is None:
        return todo.comparison()
    todo.trials(shard)
    names = [name_of(shape) for shape in plan.candidates]
    done = tuple(name for name in names if (trials / f"{SEARCH}-{name}" / ARTIFACT_FILE).is_file())
    return SearchShare(done=done, left=tuple(name for name in names if name not in done))


def _with_candidates(recipe: Recipe) -> Recipe:
    number = recipe.search.candidates or DEFAULT_CANDIDATES
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"candidates": number})})


def _planned(recipe: Recipe, teacher: Dims, out_dir: Path) -> SearchPlan:
    """The shapes to try, once there is room for the largest."""
    from compressor.pipeline.running import require_disk
    from compressor.planning.plan import make_plan

    made = make_plan(recipe, teacher)
    assert made.search is not None
    on_main(lambda: require_disk([use for use in made.disk if use.stage == "search"], out_dir.parent))
    return made.search


def _begin(recipe: Recipe, out_dir: Path, trials: Path, execution: Execution) -> None:
    """Refuse, before anything is read, what would end the search later."""
    from compressor.pipeline.consistency import require_consistent
    from compressor.pipeline.preflight import require_texts

    training = recipe.search.training(recipe.distill)
    own = recipe.model_copy(update={"distill": training})
    require_consistent(own)
    resumes = execution.resume and not trials.is_dir()
    texts = [domain.data for domain in training.mixture()]
    replace(execution, resume=resumes).begin(out_dir, [recipe.model], texts=texts, training=training)
    on_main(lambda: require_texts(own, execution.console))


def _check_source(recipe: Recipe, plan: SearchPlan, source: ModelArtifact) -> None:
    """Refuse a model that an export cannot express in any of the shapes, and texts that are too short."""
    from compressor.models.checkpoint import read_config
    from compressor.models.tokenizer import load_tokenizer
    from compressor.pipeline.preflight import require_expressible, require_windows

    for shape in plan.candidates:
        require_expressible(recipe, read_config(source.path), shape)
    own = recipe.model_copy(update={"distill": recipe.search.training(recipe.distill)})
    tokenizer = load_tokenizer(source.path, trust_remote_code=recipe.trust_remote_code)
    require_windows(own, tokenizer, source.texts)
