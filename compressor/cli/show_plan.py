"""A recipe's plan, of one model or of a family, and the text that shows it."""

from __future__ import annotations

from pathlib import Path

from compressor.cli.render import family_plan_text, plan_text
from compressor.core.errors import UsageError
from compressor.models.dims import Dims
from compressor.pipeline.family import FamilyPlan, plan_family, split_targets
from compressor.planning.cost import Hardware
from compressor.planning.plan import Plan, make_plan
from compressor.recipe.recipe import Recipe


def planned(
    recipe: Recipe, teacher: Dims, *, out_dir: Path, hardware: Hardware | None = None
) -> tuple[Plan | FamilyPlan, str]:
    """Resolve a recipe: a family where it names several targets.

    Raises:
        UsageError: for a target and an explicit shape at once.
        UnsupportedError: for a local model that one of the formats cannot express.
    """
    if recipe.target is not None and recipe.prune.shape is not None:
        raise UsageError(
            "a run takes a target or an explicit shape, not both",
            where="--target",
            found=f"{recipe.target}, and a shape with {', '.join(recipe.prune.shape)}",
        )
    if len(split_targets(recipe.target)) > 1:
        family = plan_family(recipe, teacher, hardware=hardware, out_dir=str(out_dir))
        return family, family_plan_text(family.record)
    plan = make_plan(recipe, teacher, hardware=hardware, out_dir=str(out_dir))
    if Path(recipe.model).is_dir():
        # Reads the config again, with libraries that a published model's plan does without.
        from compressor.models.load import resolve_source
        from compressor.pipeline.preflight import require_expressible_source

        require_expressible_source(recipe, resolve_source(recipe.model), plan.student.dims)
    return plan, plan_text(plan)
