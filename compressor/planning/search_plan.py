"""What a search will try, and what that costs. No torch.

The default rule's shape is always tried; the others are spread over the list: it is cut into bands of
depth, each band into parts by width, all of about equally many shapes, and the middle one of each part is
taken. Nothing is drawn by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UsageError
from compressor.core.records import Record
from compressor.models.dims import Dims, flops_per_token, num_parameters
from compressor.models.presets import published_target
from compressor.planning.cost import Hardware, repair_flops, scoring_passes, step_seconds, training_phases
from compressor.planning.search_space import (
    SEARCH_TOLERANCE,
    Deployment,
    Excluded,
    SearchSpace,
    enumerate_shapes,
    refusal,
)
from compressor.planning.target import parse_count, resolve_target
from compressor.recipe.recipe import Recipe


class SearchPlan(Record):
    """The shapes that a search tries, and where they are from.

    Attributes:
        tolerance: How far a shape's parameters may be from the requested ones.
        num_shapes: Shapes within the tolerance that can be deployed.
        excluded: Shapes within the tolerance that cannot, by reason.
        default: The shape of the default rule, which the others are compared with.
        default_excluded: Why the default rule's shape is not tried, where it cannot be deployed.
        candidates: The shapes to try, the default rule's first.
        tokens: Training tokens of each.
        hours: Of scoring, repairs and trainings on the plan's hardware.
    """

    tolerance: float = SEARCH_TOLERANCE
    requested_parameters: int
    num_shapes: int
    excluded: tuple[Excluded, ...]
    default: Dims
    default_excluded: str | None = None
    candidates: tuple[Dims, ...]
    tokens: int
    hours: float


def name_of(shape: Dims) -> str:
    """Layers, hidden size, intermediate size and heads, such as `30x432x1024x9`."""
    sizes = (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size, shape.num_attention_heads)
    return "x".join(map(str, sizes))


def require_searchable(recipe: Recipe, teacher: Dims) -> None:
    """Refuse choices that a search contradicts, or that only a search reads.

    Raises:
        UsageError: naming them.
    """
    search = recipe.search
    if search.candidates is None:
        if search.tokens is not None:
            raise UsageError(
                "no shapes are tried, so these tokens have no effect",
                where="--search-tokens (search.tokens)",
                hint="add --search N, or leave them out",
            )
        return
    if recipe.prune.shape is not None or recipe.target is None:
        has_shape = recipe.prune.shape is not None
        raise UsageError(
            "a search finds the shape, and needs the size that it should have",
            where="--shape" if has_shape else "--target",
            found="an explicit shape" if has_shape else "no target",
            hint=f"give a size such as --target 60%{' in place of --shape' if has_shape else ''}",
        )
    own_scores = {
        "--hidden-removal": recipe.prune.rotates,
        "--depth-importance": recipe.prune.measures_depth,
        "--importance": IMPORTANCE_METHODS[recipe.prune.importance].trains,
    }
    if chosen := [flag for flag, is_chosen in own_scores.items() if is_chosen]:
        raise UsageError(
            "a search cuts all shapes by one set of scores, and these choices measure every shape by itself",
            where=", ".join(chosen),
            hint="leave them out, or use them with the shape that a search finds",
        )
    if search.tokens is not None and search.tokens < recipe.distill.context_length:
        raise UsageError(
            "the tokens of a search do not fill one training sequence",
            where="--search-tokens (in `compress-export search` --tokens)",
            expected=f"at least {recipe.distill.context_length}, which is --context-length",
            found=search.tokens,
            hint="raise them, or lower --context-length",
        )
    if "," in recipe.target:
        raise UsageError(
            "a search is for one target; several make a family of models, whose shapes depend on each other",
            where="--search",
            found=f"--target {recipe.target}",
            hint="search for one size at a time: each next one from the model that was made last",
        )
    published = published_target(teacher, recipe.target)
    if published is not None:
        size = num_parameters(published.dims)
        raise UsageError(
            "this target is a published shape, which leaves nothing to search",
            where="--search",
            found=f"--target {recipe.target}, which is {published.alias}",
            hint=f"leave --search out, or give its size as a number, such as --target {size}",
        )


def plan_search(recipe: Recipe, teacher: Dims, hardware: Hardware) -> SearchPlan | None:
    """The shapes that a recipe's search tries; None where it asks for no search.

    Raises:
        UsageError: for contradictions, or where fewer than two shapes can be deployed.
    """
    require_searchable(recipe, teacher)
    if recipe.search.candidates is None:
        return None
    assert recipe.target is not None
    default = resolve_target(teacher, recipe.target).student
    wanted = parse_count(recipe.target, whole=num_parameters(teacher))
    deployment = Deployment.of(recipe, teacher)
    space = enumerate_shapes(teacher, wanted, deployment)
    _require_choice(space, wanted)
    candidates = choose(space.shapes, default, recipe.search.candidates)
    return SearchPlan(
        requested_parameters=wanted,
        num_shapes=len(space.shapes),
        excluded=space.excluded,
        default=default,
        default_excluded=refusal(teacher, default, deployment),
        candidates=candidates,
        tokens=recipe.search.training(recipe.distill).tokens,
        hours=round(_hours(recipe, teacher, candidates, hardware), 4),
    )


def choose(shapes: Sequence[Dims], default: Dims, number: int) -> tuple[Dims, ...]:
    """So many of the shapes, or all of fewer: the default if it is one of them, then the others."""
    first = [shape for shape in shapes if shape == default]
    others = [shape for shape in shapes if shape != default]
    number = min(number - len(first), len(others))
    num_bands = max(1, round(math.sqrt(number)))
    cells = [number // num_bands + (position < number % num_bands) for position in range(num_bands)]
    # A band is as large as its share of the cells, so that it has a shape for each of them.
    ends = [len(others) * taken // number for taken in accumulate(cells, initial=0)] if number else []
    by_depth = sorted(others, key=_by_depth)
    spread: list[Dims] = []
    for (start, end), wanted in zip(pairwise(ends), cells, strict=False):
        band = sorted(by_depth[start:end], key=_by_width)
        spread += [part[len(part) // 2] for part in _parts(band, wanted)]
    return (*first, *spread)


def _parts(shapes: Sequence[Dims], number: int) -> list[Sequence[Dims]]:
    """Consecutive parts whose sizes differ by one at most."""
    ends = [len(shapes) * position // number for position in range(number + 1)] if number else []
    return [shapes[start:end] for start, end in pairwise(ends)]


def _by_depth(shape: Dims) -> tuple[int, ...]:
    return (shape.num_hidden_layers, *_by_width(shape))


def _by_width(shape: Dims) -> tuple[int, ...]:
    return shape.hidden_size, shape.intermediate_size, shape.num_attention_heads, shape.num_hidden_layers


def _require_choice(space: SearchSpace, wanted: int) -> None:
    if len(space.shapes) > 1:
        return
    left_out = "; ".join(f"{found.num_shapes:,}: {found.reason}" for found in space.excluded)
    raise UsageError(
        "fewer than two shapes of this size can be deployed, so there is nothing to compare",
        where="--search",
        expected=f"two shapes within {SEARCH_TOLERANCE:.0%} of {wanted:,} parameters",
        found=f"{len(space.shapes)}; left out {left_out or 'none'}",
        hint="choose another --target, or leave --search out",
    )


def _hours(recipe: Recipe, teacher: Dims, candidates: Sequence[Dims], hardware: Hardware) -> float:
    """Scoring once by the teacher's forward FLOPs; then every shape's repair and training."""
    calibration, training = recipe.calibration, recipe.search.training(recipe.distill)
    context = calibration.seq_len // 2
    tokens = calibration.size * calibration.seq_len * scoring_passes(recipe.prune)
    flops = tokens * flops_per_token(teacher, context)
    flops += sum(repair_flops(recipe, teacher, shape) for shape in candidates)
    rate = hardware.device.bf16_flops_per_s * hardware.utilisation * hardware.num_gpus
    seconds = flops / rate
    short = recipe.model_copy(
        update={"distill": training, "sparsify": recipe.sparsify.model_copy(update={"pattern": None})}
    )
    for shape in candidates:
        for phase in training_phases(short, teacher, shape, hardware.num_gpus):
            seconds += phase.schedule.steps * step_seconds(phase, hardware, hardware.num_gpus)
    return seconds / 3600
