"""All shapes of about a target's size, those that can be deployed, and why the others cannot. No torch.

A shape is a number of layers, query heads, MLP neurons and hidden channels. Widths are counted in steps
of 16, below which no matrix kernel for FP8 or 2:4 weights goes; of those the rules below leave what the
exports, their kernels and the model class take. The search of Minitron lists shapes within 5 % of the
parameter target in the same way (arXiv 2407.14679, section 3.2).

Legend: P parameters, L layers, I neurons. P is linear in L and, per layer, in I: shapes are counted by
intervals of I, not one by one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product

from compressor.choices.formats import FORMATS
from compressor.core.records import Record
from compressor.models.dims import Dims, num_parameters
from compressor.planning.target import INTERMEDIATE_MULTIPLE, SMALLEST_FRACTION, hidden_multiple
from compressor.recipe.recipe import Recipe

SEARCH_TOLERANCE = 0.05
WIDTH_STEP = KERNEL_MULTIPLE = 16
# Of the attention kernels of FlashAttention, ONNX Runtime and TensorRT-LLM.
HEAD_SIZE_MULTIPLE, LARGEST_HEAD_SIZE = 8, 256

AXES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
_Rules = dict[str, Callable[[int], bool]]


class Excluded(Record):
    """Shapes of the right size that are left out, each counted once, by the first rule that it breaks."""

    reason: str
    num_shapes: int


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What the exports of a recipe demand of every shape.

    Attributes:
        tp_size: GPUs that every layer is split over; 1 where no export is split.
        pp_size: GPUs that the layers are divided among.
        group_size: M of an N:M pattern, None for a dense model.
        sparse_axes: The axes along which a sparse matrix has its columns.
        needs_kernels: Whether FP8 or sparse kernels multiply the linear layers.
    """

    tp_size: int = 1
    pp_size: int = 1
    group_size: int | None = None
    sparse_axes: frozenset[str] = frozenset()
    needs_kernels: bool = False

    @classmethod
    def of(cls, recipe: Recipe, teacher: Dims) -> Deployment:
        """The demands of a recipe's exports, FP8 and sparsity."""
        ranks = recipe.export.tensorrt_llm
        is_split = any(FORMATS[name].has_engine for name in recipe.export_formats())
        pattern = recipe.sparsify.pattern
        return cls(
            tp_size=ranks.tp_size if is_split else 1,
            pp_size=ranks.pp_size if is_split else 1,
            group_size=int(pattern.partition(":")[2]) if pattern else None,
            sparse_axes=frozenset(_sparse_axes(teacher, recipe.sparsify.skip)) if pattern else frozenset(),
            needs_kernels=recipe.quantize.fp8 or pattern is not None,
        )


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The shapes of about a size: those that can be deployed, in order of depth, and the others by reason."""

    shapes: tuple[Dims, ...]
    excluded: tuple[Excluded, ...]


def enumerate_shapes(teacher: Dims, wanted: int, deployment: Deployment) -> SearchSpace:
    """Every shape below the teacher's whose parameters are within 5 % of `wanted`."""
    tolerance = int(SEARCH_TOLERANCE * wanted)
    sizes = {
        "num_hidden_layers": list(range(1, teacher.num_hidden_layers + 1)),
        "num_attention_heads": list(range(1, teacher.num_attention_heads + 1)),
        "hidden_size": _widths(teacher.hidden_size),
        "intermediate_size": _widths(teacher.intermediate_size),
    }
    why = {
        name: {size: _first_broken(_rules(teacher, name, deployment), size) for size in own}
        for name, own in sizes.items()
    }
    excluded: Counter[str] = Counter()
    shapes: list[Dims] = []
    for fixed, neurons in _near(teacher, sizes, wanted - tolerance, wanted + tolerance):
        reason = next((found for name, size in fixed.items() if (found := why[name][size])), None)
        reason = reason or unfit_pair(teacher, fixed["hidden_size"], fixed["num_attention_heads"])
        if reason:
            excluded[reason] += len(neurons)
            continue
        for size in neurons:
            shape = teacher.with_shape(**fixed, intermediate_size=size)
            own_reason = "the teacher's own shape" if shape == teacher else why["intermediate_size"][size]
            if own_reason:
                excluded[own_reason] += 1
            else:
                shapes.append(shape)
    return SearchSpace(
        shapes=tuple(sorted(shapes, key=_order)),
        excluded=tuple(Excluded(reason=name, num_shapes=count) for name, count in excluded.most_common()),
    )


def refusal(teacher: Dims, shape: Dims, deployment: Deployment) -> str | None:
    """Why a shape cannot be deployed; None where it can."""
    reasons = (_first_broken(_rules(teacher, name, deployment), getattr(shape, name)) for name in AXES)
    unfit = unfit_pair(teacher, shape.hidden_size, shape.num_attention_heads)
    return next((reason for reason in reasons if reason), unfit)


def deployable_sizes(teacher: Dims, name: str, deployment: Deployment, sizes: Iterable[int]) -> list[int]:
    """Those of the sizes of one axis that the exports, their kernels and the model class take."""
    rules = _FURTHER[name](teacher, deployment)
    return [size for size in sizes if _first_broken(rules, size) is None]


def _near(
    teacher: Dims, sizes: Mapping[str, list[int]], least: int, most: int
) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Every combination of the other axes, with the numbers of neurons that give from least to most P."""
    neurons = sizes["intermediate_size"]
    for heads, hidden_size in product(sizes["num_attention_heads"], sizes["hidden_size"]):
        narrow = teacher.with_shape(num_attention_heads=heads, hidden_size=hidden_size)
        outside = num_parameters(narrow.with_shape(num_hidden_layers=0))
        layer = num_parameters(narrow.with_shape(num_hidden_layers=1, intermediate_size=0)) - outside
        unit = num_parameters(narrow.with_shape(num_hidden_layers=1, intermediate_size=1)) - outside - layer
        for num_layers in sizes["num_hidden_layers"]:
            rest, step = outside + num_layers * layer, num_layers * unit
            first = bisect_left(neurons, -(-(least - rest) // step))
            last = bisect_right(neurons, (most - rest) // step)
            if first < last:
                fixed = (num_layers, heads, hidden_size)
                yield dict(zip(AXES, fixed, strict=False)), neurons[first:last]


def _widths(largest: int) -> list[int]:
    """Multiples of the step, and the teacher's own size."""
    return sorted({*range(WIDTH_STEP, largest + 1, WIDTH_STEP), largest})


def _order(dims: Dims) -> tuple[int, ...]:
    return tuple(getattr(dims, name) for name in AXES)


def unfit_pair(teacher: Dims, hidden_size: int, num_heads: int) -> str | None:
    """Why hidden size and number of heads do not go together."""
    if teacher.family.hidden_divisible_by_heads and hidden_size % num_heads:
        return f"{teacher.model_type} needs a hidden_size that is a multiple of num_attention_heads"
    return None


def _first_broken(rules: _Rules, size: int) -> str | None:
    return next((reason for reason, breaks in rules.items() if breaks(size)), None)


def _rules(teacher: Dims, name: str, deployment: Deployment) -> _Rules:
    """What may be wrong with a size of one axis, in the order in which it is looked for."""
    smallest = getattr(teacher, name) * SMALLEST_FRACTION
    least = max(1, int(smallest)) if name == "num_hidden_layers" else smallest
    too_small = f"{name} below {SMALLEST_FRACTION:.0%} of the teacher's"
    return {too_small: lambda size: size < least, **_FURTHER[name](teacher, deployment)}


def _layer_rules(_teacher: Dims, deployment: Deployment) -> _Rules:
    stages = deployment.pp_size
    return {f"fewer layers than pipeline stages ({stages})": lambda size: size < stages}


def _head_rules(teacher: Dims, deployment: Deployment) -> _Rules:
    groups, width, ranks = teacher.num_key_value_heads, teacher.head_dim, deployment.tp_size
    splits = groups % ranks == 0 or ranks % groups == 0
    has_kernel = width % HEAD_SIZE_MULTIPLE == 0 and width <= LARGEST_HEAD_SIZE
    return {
        f"head size {width}: the runtimes' attention kernels need a multiple of {HEAD_SIZE_MULTIPLE} up to "
        f"{LARGEST_HEAD_SIZE}": lambda _size: not has_kernel,
        f"num_attention_heads is no multiple of the {groups} key/value heads": lambda size: size % groups > 0,
        f"attention heads cannot be split over {ranks} GPUs": lambda size: size % ranks > 0 or not splits,
        **_column_rules("num_attention_heads", "heads", deployment, width=width),
    }


def _hidden_rules(teacher: Dims, deployment: Deployment) -> _Rules:
    own = teacher.hidden_size
    alone = teacher.with_shape(num_attention_heads=1)  # the pair of both is another rule
    return {
        "hidden_size is off the grid (multiples of 64, below 2048 of 16)": lambda size: (
            size != own and size % hidden_multiple(alone, size) > 0
        ),
        **_column_rules("hidden_size", "hidden", deployment, is_cut=False),
    }


def _neuron_rules(teacher: Dims, deployment: Deployment) -> _Rules:
    own, ranks = teacher.intermediate_size, deployment.tp_size
    return {
        f"intermediate_size is off the grid (multiples of {INTERMEDIATE_MULTIPLE})": lambda size: (
            size != own and size % INTERMEDIATE_MULTIPLE > 0
        ),
        f"MLP neurons cannot be split over {ranks} GPUs": lambda size: size % ranks > 0,
        **_column_rules("intermediate_size", "intermediate", deployment),
    }


_FURTHER: dict[str, Callable[[Dims, Deployment], _Rules]] = {
    "num_hidden_layers": _layer_rules,
    "num_attention_heads": _head_rules,
    "hidden_size": _hidden_rules,
    "intermediate_size": _neuron_rules,
}


def _column_rules(
    name: str, axis: str, deployment: Deployment, *, width: int = 1, is_cut: bool = True
) -> _Rules:
    """What sparse patterns and low-precision kernels demand of the columns that each GPU holds."""
    ranks, group = deployment.tp_size if is_cut else 1, deployment.group_size
    rules: _Rules = {}
    if group and axis in deployment.sparse_axes:
        rules[f"{name}: each GPU's columns do not divide into sparse groups of {group}"] = lambda size: (
            size * width // ranks % group > 0
        )
    if deployment.needs_kernels:
        rules[f"{name}: FP8 and sparse kernels need multiples of {KERNEL_MULTIPLE} on each GPU"] = (
            lambda size: size * width // ranks % KERNEL_MULTIPLE > 0
        )
    return rules


def _sparse_axes(teacher: Dims, skip: tuple[str, ...]) -> Iterator[str]:
    """The axes of the columns of every linear layer that sparsity covers."""
    weights = teacher.weights()
    for name in teacher.linear_names():
        columns = weights[f"{name}.weight"][0].columns
        if columns and not any(fnmatch(f"{name}.weight", pattern) for pattern in skip):
            yield columns
