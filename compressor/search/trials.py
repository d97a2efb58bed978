"""The order of a search's stages, wherever they run: importance, every shape's trial, the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from compressor.evaluation.evaluate_stage import EvaluateStageConfig
from compressor.models.dims import Dims
from compressor.planning.search_plan import SearchPlan, name_of
from compressor.pruning.prune_stage import saved_scores
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage
from compressor.search.stages import COMPARE, MEASURE, TRIAL, scores_config, search_config, trial_config

# The directories of the importance scores and of the comparison; a trial's is named after its shape.
SCORES, SEARCH = "search-scores", "search"


class Work(Protocol):
    """Runs a stage on the teacher into the directory of this name, unless its output is there."""

    def __call__(
        self, stage: Stage[Any], config: Any, name: str, *, others: Mapping[str, ModelArtifact]
    ) -> ModelArtifact:
        """The stage's artifact."""


@dataclass(frozen=True, kw_only=True)
class SearchWork:
    """A search that is to be done.

    Attributes:
        recipe: Its settings.
        plan: The shapes to try.
        evaluation: The text that every shape is measured on.
        work: Runs one of its stages.
    """

    recipe: Recipe
    plan: SearchPlan
    evaluation: EvaluateStageConfig
    work: Work

    def share(self, shard: tuple[int, int] | None) -> tuple[Dims, ...]:
        """The shapes of a share, the first of n being (1, n); all without one."""
        number, count = shard or (1, 1)
        return self.plan.candidates[number - 1 :: count]

    def scores(self) -> ModelArtifact:
        """The importance of all units, which every trial prunes by."""
        saved = saved_scores(self.recipe.prune)
        return self.work(MEASURE, scores_config(self.recipe), SCORES, others=saved)

    def trials(self, shard: tuple[int, int] | None = None) -> dict[str, ModelArtifact]:
        """The trials of a share, by the shape's name."""
        scores, made = self.scores(), {}
        for shape in self.share(shard):
            config = trial_config(self.recipe, shape, scores, self.evaluation)
            name = name_of(shape)
            made[name] = self.work(TRIAL, config, f"{SEARCH}-{name}", others={SCORES: scores})
        return made

    def comparison(self) -> ModelArtifact:
        """The comparison of all trials; those that are there already are read."""
        return self.work(COMPARE, search_config(self.recipe, self.plan), SEARCH, others=self.trials())
