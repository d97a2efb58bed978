"""The shapes on the way to a student that is reached in several cuts. No torch.

Every cut keeps about the same share of each dimension, as far as the shape in between can be deployed; no
dimension grows again. After Adapt-Pruner (arXiv 2502.03460), which prunes a little, trains, and prunes again;
departure: every layer of a shape is alike, where it cuts insensitive layers more than others.

Legend: N query heads, K key/value heads.
"""

from __future__ import annotations

import math
from itertools import pairwise, product

from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UsageError
from compressor.core.records import Record
from compressor.models.dims import GROUP_FIELDS, PRUNABLE_FIELDS, Dims, num_parameters
from compressor.planning.depth import published_layers
from compressor.planning.search_space import Deployment, deployable_sizes, unfit_pair
from compressor.recipe.recipe import Recipe

INTERLEAVE = "interleave"  # the stage of all cuts but the last, as `--restart-from` takes it
CUT = "cut-"


class PlannedCut(Record):
    """One of several cuts.

    Attributes:
        name: What its directories begin with; the last cut makes the student, as the one cut of a run does.
        shape: What it leaves.
        num_parameters: Of that shape.
        tokens: Training tokens after it.
    """

    name: str
    shape: Dims
    num_parameters: int
    tokens: int


def name_of_cut(number: int) -> str:
    """What the directories of a cut begin with, the first being 1."""
    return f"{CUT}{number}"


def require_interleavable(recipe: Recipe) -> None:
    """Refuse choices that contradict cuts with training between them.

    Raises:
        UsageError: naming them.
    """
    if not recipe.interleave.enabled:
        return
    prune, distill = recipe.prune, recipe.distill
    least = recipe.interleave.cuts * distill.context_length
    if distill.tokens < least:
        raise UsageError(
            "the token budget does not fill one training sequence after every cut",
            where="--tokens",
            expected=f"at least {least}: --interleave times --context-length",
            found=distill.tokens,
            hint="raise --tokens, lower --context-length, or use fewer cuts (--interleave)",
        )
    contradictions = {
        "--scores: saved scores are of the original model, and every cut is scored by itself": (
            prune.scores is not None
        ),
        "--hidden-removal rotation: it rotates the original model, once": prune.rotates,
        f"--importance {prune.importance}: it trains the way to the shape itself": (
            IMPORTANCE_METHODS[prune.importance].trains
        ),
        "--teacher-correction alongside: it would begin anew after every cut": (
            distill.correction.mode == "alongside"
        ),
    }
    for found, is_chosen in contradictions.items():
        if is_chosen:
            raise UsageError(
                "this choice contradicts several cuts with training between them",
                where="--interleave",
                found=found,
                hint="leave one of the two out",
            )


def plan_cuts(recipe: Recipe, teacher: Dims, student: Dims) -> tuple[PlannedCut, ...]:
    """Every cut, the last of which leaves the student; none for a run of one cut.

    Raises:
        UsageError: where teacher and student are too close for so many, or a publication names the layers.
    """
    number = recipe.interleave.cuts
    if not recipe.interleave.enabled:
        return ()
    if published_layers(recipe.prune, teacher, student):
        raise UsageError(
            "the publication of this student names the layers that one cut removes",
            where="--interleave",
            found=number,
            hint="leave it out, or choose the layers by --depth-removal scattered or --depth-importance loss",
        )
    shapes = shapes_between(teacher, student, number, Deployment.of(recipe, teacher))
    sizes = [num_parameters(shape) for shape in (teacher, *shapes)]
    if any(after >= before for before, after in pairwise(sizes)):
        distinct = len({*shapes} - {teacher})
        raise UsageError(
            "there are not so many shapes that can be deployed between the model and the student",
            where="--interleave",
            expected=f"at most {distinct}",
            found=number,
            hint="use fewer cuts, or a smaller --target",
        )
    tokens = recipe.interleave.share(recipe.distill).tokens
    return tuple(
        PlannedCut(name=name_of_cut(index), shape=shape, num_parameters=num_parameters(shape), tokens=tokens)
        for index, shape in enumerate(shapes, start=1)
    )


def shapes_between(teacher: Dims, student: Dims, number: int, deployment: Deployment) -> tuple[Dims, ...]:
    """The shape after each of `number` cuts: dimensions shrink geometrically, the last is the student's."""
    shapes, before = list[Dims](), teacher
    for index in range(1, number):
        wanted = {
            name: getattr(teacher, name)
            * (getattr(student, name) / getattr(teacher, name)) ** (index / number)
            for name in (*PRUNABLE_FIELDS, *GROUP_FIELDS)
        }
        before = _nearest(teacher, before, student, wanted, deployment)
        shapes.append(before)
    return (*shapes, student)


def _nearest(
    teacher: Dims, before: Dims, student: Dims, wanted: dict[str, float], deployment: Deployment
) -> Dims:
    """The deployable shape between two that is closest to the wanted dimensions, each by its ratio."""

    def sizes(name: str) -> list[int]:
        least, most = getattr(student, name), getattr(before, name)
        return [*deployable_sizes(teacher, name, deployment, range(least + 1, most)), least, most]

    def distance(name: str, size: int) -> float:
        return abs(math.log(size / wanted[name]))

    def nearest(name: str) -> int:
        return min(sizes(name), key=lambda size: (distance(name, size), size))

    shape = {name: nearest(name) for name in ("num_hidden_layers", "intermediate_size")}
    pairs = product(_heads(teacher, before, student, deployment), sizes("hidden_size"))
    fitting = [
        (heads, groups, hidden)
        for (heads, groups), hidden in pairs
        if unfit_pair(teacher, hidden, heads) is None
    ]
    names = ("num_attention_heads", "num_key_value_heads", "hidden_size")
    chosen = min(fitting, key=lambda found: (sum(map(distance, names, found)), found))
    return before.with_shape(**shape, **dict(zip(names, chosen, strict=True)))


def _heads(teacher: Dims, before: Dims, student: Dims, deployment: Deployment) -> set[tuple[int, int]]:
    """Query and key/value heads between two shapes, and theirs: whole groups, none larger than before."""
    ends = [(dims.num_attention_heads, dims.num_key_value_heads) for dims in (before, student)]
    largest, smallest = (heads // groups for heads, groups in ends)
    found = set(ends)
    for groups in range(student.num_key_value_heads, before.num_key_value_heads + 1):
        grouped = teacher.with_shape(num_key_value_heads=groups)
        sizes = range(smallest * groups, largest * groups + 1, groups)
        deployable = deployable_sizes(grouped, "num_attention_heads", deployment, sizes)
        found |= {(heads, groups) for heads in deployable if student.num_attention_heads <= heads}
    return found
