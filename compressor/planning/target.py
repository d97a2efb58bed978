"""From a target size to a student shape.

A target is a published shape's name, a parameter count (embeddings included) or a percentage. A
published shape of the recognised teacher comes first (Llama-3.1's `4b` is 4.51e9); other sizes are
met by removing MLP neurons and layers together, and hidden channels only where those do not suffice,
on a grid that the runtimes' kernels and the model class accept. That order is measured: after a
repair and a short distillation such students were the best of their size (docs/results). Minitron,
which knows no repair, removes width before depth (arXiv 2407.14679, practice 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from compressor.core.errors import UnsupportedError, UsageError, nearest
from compressor.models.dims import GROUP_FIELDS, PRUNABLE_FIELDS, Dims, check_shape, num_parameters
from compressor.models.families import FAMILIES
from compressor.models.presets import PRESETS, preset_of_dims, published_target
from compressor.recipe import forms

TOLERANCE = 0.02
INTERMEDIATE_MULTIPLE = 64
LARGE_HIDDEN_SIZE = 2048
LARGE_HIDDEN_MULTIPLE = 64
SMALL_HIDDEN_MULTIPLE = 16
SMALLEST_FRACTION = 0.25
# Of the teacher's parameters: a number below it has lost its unit.
_FEWEST_MEANT = 1 / 1000
# How dear it is to halve a dimension, beside each other, and how far others shrink before hidden_size does.
REDUCTION_WEIGHTS = {"intermediate_size": 1, "num_hidden_layers": 4, "hidden_size": 16}
FRACTIONS_BEFORE_HIDDEN = {"intermediate_size": 0.4, "num_hidden_layers": 0.6}


@dataclass(frozen=True, kw_only=True)
class ResolvedTarget:
    """A student's shape and why it is that one."""

    student: Dims
    rule: str
    published: str | None = None
    requested_parameters: int | None = None


def parse_count(text: str, *, whole: int) -> int:
    """A target such as `4b` or `60%` of `whole`.

    Raises:
        UsageError: for anything else.
    """
    try:
        return forms.parse_count(text, whole=whole)
    except ValueError as error:
        raise UsageError(
            "--target is not a size",
            where="--target",
            expected=error,
            found=text[:40],
            hint="write --target 4b or --target 100m",
        ) from error


def require_rotation(teacher: Dims, student: Dims) -> None:
    """Refuse to reduce the hidden size by rotation where that is not possible, or no reduction.

    Raises:
        UnsupportedError: for an architecture whose residual stream cannot be rotated.
        UsageError: for a student of the teacher's hidden size, or no smaller than the teacher.
    """
    where = "--hidden-removal rotation"
    if not teacher.family.rotatable:
        raise UnsupportedError(
            f"the hidden size of {teacher.model_type} models cannot be reduced by rotation",
            where=where,
            expected=f"one of {', '.join(name for name, family in FAMILIES.items() if family.rotatable)}",
            hint="use --hidden-removal channels",
        )
    if student.hidden_size == teacher.hidden_size:
        raise UsageError(
            "the student keeps the teacher's hidden size, so there is nothing to rotate",
            where=where,
            expected=f"a hidden_size below {teacher.hidden_size}",
            hint="leave out --hidden-removal, or give a smaller hidden_size with --shape",
        )
    own, whole = num_parameters(student), num_parameters(teacher)
    if own >= whole:
        raise UsageError(
            "the student would not be smaller than the teacher, because its LM head is not its embedding",
            where=where,
            expected=f"below {whole:,} parameters",
            found=f"{own:,}",
            hint="choose a smaller shape, or --hidden-removal channels",
        )


def resolve_target(teacher: Dims, target: str, *, rotates: bool = False) -> ResolvedTarget:
    """The student shape that `target` asks for.

    A student that `rotates` has a smaller hidden size than the teacher, and an LM head of its own.

    Raises:
        UsageError: a target that is no size and no published shape, above the teacher, or too small.
    """
    published = published_target(teacher, target)
    if published is not None and not (rotates and published.dims.tie_word_embeddings):
        return ResolvedTarget(
            student=published.dims,
            rule=f"published shape {published.alias} ({published.source})",
            published=published.alias,
        )
    preset = preset_of_dims(teacher)
    if forms.SIZE.fullmatch(target.strip()) is None:
        known = preset.targets if preset else {}
        owners = [alias for alias, other in PRESETS.items() if target.strip() in other.targets]
        raise UsageError(
            f"target {target!r} is neither a size nor a published shape of this teacher",
            where="--target",
            expected="a size such as 4b or 60%" + (f", or {', '.join(known)}" if known else ""),
            found=f"a published shape of {', '.join(owners)}" if owners else None,
            hint=(None if owners else nearest(target, {*known, *PRESETS}))
            or "write a size such as 4b or 60%",
        )
    total = num_parameters(teacher)
    wanted = parse_count(target, whole=total)
    if not 0 < wanted < total:
        larger = "a smaller" if wanted else "a larger"
        raise UsageError(
            "the target is not below the teacher's size" if wanted else "the target leaves nothing",
            where="--target",
            expected=f"between 1 and {total - 1:,} parameters",
            found=f"{wanted:,}",
            hint=f"choose {larger} --target, such as 50%",
        )
    if wanted < _FEWEST_MEANT * total and (number := forms.SIZE.fullmatch(target.strip())) and not number[2]:
        share = number[1] if float(number[1]) >= 1 else f"{100 * float(number[1]):g}"
        raise UsageError(
            f"--target {target} is a number of parameters, below a thousandth of the teacher's",
            where="--target",
            expected="a share with %, or a number with k, m or b",
            found=f"{wanted:,} parameters",
            hint=f"write {share}% for a share of the teacher, or {number[1]}m or {number[1]}b for parameters",
        )
    return _shrink(teacher, wanted, rotates=rotates)


def resolve_shape(teacher: Dims, shape: dict[str, int], *, rotates: bool = False) -> ResolvedTarget:
    """The student with these explicit dimensions, checked against the teacher and its class.

    A student that `rotates` has an LM head of its own.

    Raises:
        UsageError: an unknown dimension, or one above the teacher's.
        UnsupportedError: a shape that the model class refuses.
    """
    names = (*PRUNABLE_FIELDS, *GROUP_FIELDS)
    for name, size in shape.items():
        if name not in names:
            raise UsageError(
                f"unknown dimension {name!r}",
                where="--shape",
                expected=", ".join(names),
                hint=nearest(name, names) or "use one of the expected names",
            )
        if not 0 < size <= getattr(teacher, name):
            raise UsageError(
                f"{name} is out of range",
                where="--shape",
                expected=f"1 to {getattr(teacher, name)}",
                found=size,
                hint=f"set it to {getattr(teacher, name)} at most, and 1 at least",
            )
    student = (teacher.untied() if rotates else teacher).with_shape(**shape)
    check_shape(student, where="--shape")
    _refuse_larger_groups(teacher, student)
    published = preset_of_dims(student)
    if published is None:
        return ResolvedTarget(student=student, rule="an explicit shape")
    rule = f"an explicit shape, published as {published.alias} ({published.source})"
    return ResolvedTarget(student=student, rule=rule, published=published.alias)


def _refuse_larger_groups(teacher: Dims, student: Dims) -> None:
    """A key/value head goes with its query heads; those of others cannot take their place."""
    largest = teacher.num_attention_heads // teacher.num_key_value_heads * student.num_key_value_heads
    if student.num_attention_heads > largest:
        raise UsageError(
            "a key/value head is removed with all of its query heads, so fewer of those are left",
            where="--shape: num_attention_heads, num_key_value_heads",
            expected=f"at most {largest} query heads with {student.num_key_value_heads} key/value heads",
            found=student.num_attention_heads,
            hint=f"add num_attention_heads={largest}, or keep more key/value heads",
        )


def hidden_multiple(dims: Dims, hidden_size: int) -> int:
    """The step of the hidden-size grid at this size."""
    step = _hidden_grid(hidden_size)
    return math.lcm(step, dims.num_attention_heads) if dims.family.hidden_divisible_by_heads else step


def _hidden_grid(hidden_size: int) -> int:
    return LARGE_HIDDEN_MULTIPLE if hidden_size >= LARGE_HIDDEN_SIZE else SMALL_HIDDEN_MULTIPLE


def _hidden_sizes(dims: Dims) -> list[int]:
    floor = int(dims.hidden_size * SMALLEST_FRACTION)
    return [
        size
        for size in range(dims.hidden_size, floor, -1)
        if size == dims.hidden_size or size % hidden_multiple(dims, size) == 0
    ]


def _shrink(teacher: Dims, wanted: int, *, rotates: bool) -> ResolvedTarget:
    start = teacher.untied() if rotates else teacher
    hidden_sizes = [size for size in _hidden_sizes(teacher) if not rotates or size < teacher.hidden_size]
    candidates = [found for size in hidden_sizes for found in _of_hidden_size(start, size, wanted)]
    close = [found for found in candidates if abs(found.count - wanted) <= TOLERANCE * wanted]
    if not close:
        raise _unreachable([found.count for found in candidates], wanted, total=num_parameters(teacher))
    mild = [found for found in close if found.keeps(teacher, FRACTIONS_BEFORE_HIDDEN)]
    widest = max((found.sizes["hidden_size"] for found in mild), default=None)
    chosen = [found for found in mild if found.sizes["hidden_size"] == widest] or close
    student = start.with_shape(**min(chosen, key=lambda found: found.price(teacher)).sizes)
    return ResolvedTarget(
        student=student, rule=_explain(teacher, student, wanted), requested_parameters=wanted
    )


def _unreachable(counts: list[int], wanted: int, *, total: int) -> UsageError:
    """Why no shape fits: the target is below all of them, or between two of the grid.

    A student of the teacher's own size, `total`, is none.
    """
    if not counts:
        return UsageError(
            "no smaller hidden size is on the grid",
            where="--hidden-removal rotation",
            hint="use --hidden-removal channels, or set the dimensions with --shape",
        )
    smaller = [count for count in counts if count < total]
    if not smaller:
        return UsageError(
            "no smaller shape of this model is on the grid",
            where="--target",
            found=f"{wanted:,} of {total:,} parameters",
            hint="set the dimensions with --shape",
        )
    nearest_count = min(smaller, key=lambda count: abs(count - wanted))
    if wanted < min(smaller):
        between = forms.format_count(int(float(f"{math.sqrt(wanted * total):.2g}")))
        return UsageError(
            "the target is too small to reach by width and depth",
            where="--target",
            expected=f"at least {min(smaller):,}: each size above {SMALLEST_FRACTION:.0%} of the teacher's",
            found=f"{wanted:,} parameters",
            hint=f"compress in several steps, such as --target {between},{forms.format_count(wanted)}: each "
            "student is made from the one before",
        )
    return UsageError(
        f"no shape on the grid is within {TOLERANCE:.0%} of the target",
        where="--target",
        expected=f"near {nearest_count:,}",
        found=f"{wanted:,} parameters",
        hint=f"use --target {nearest_count}, or set the dimensions with --shape",
    )


@dataclass(frozen=True)
class _Candidate:
    """Sizes of a student, by dimension, and its number of parameters."""

    sizes: dict[str, int]
    count: int

    def keeps(self, teacher: Dims, fractions: dict[str, float]) -> bool:
        """Whether no dimension is below such a fraction of the teacher's."""
        return all(self.sizes[name] >= part * getattr(teacher, name) for name, part in fractions.items())

    def price(self, teacher: Dims) -> float:
        """What the shape is expected to cost in quality: squared logarithms of what is left, weighted."""
        return sum(
            weight * math.log(self.sizes[name] / getattr(teacher, name)) ** 2
            for name, weight in REDUCTION_WEIGHTS.items()
        )


def _of_hidden_size(teacher: Dims, hidden_size: int, wanted: int) -> list[_Candidate]:
    """Per depth, the intermediate size on the grid that comes closest to the count."""
    outside, without_mlp, unit = _parts(teacher, hidden_size)
    step = INTERMEDIATE_MULTIPLE
    smallest = max(step, math.ceil(teacher.intermediate_size * SMALLEST_FRACTION / step) * step)
    smallest_depth = max(1, int(teacher.num_hidden_layers * SMALLEST_FRACTION))
    candidates = []
    for depth in range(teacher.num_hidden_layers, smallest_depth - 1, -1):
        best = round(((wanted - outside) / depth - without_mlp) / unit / step) * step
        size = min(teacher.intermediate_size, max(smallest, best))
        sizes = {"num_hidden_layers": depth, "hidden_size": hidden_size, "intermediate_size": size}
        candidates.append(_Candidate(sizes, outside + depth * (without_mlp + size * unit)))
    return candidates


@cache
def _parts(teacher: Dims, hidden_size: int) -> tuple[int, int, int]:
    """Parameters outside the layers, of a layer without its MLP, and of a neuron."""
    narrow = teacher.with_shape(hidden_size=hidden_size)
    outside = num_parameters(narrow.with_shape(num_hidden_layers=0))
    without_mlp, with_one = (
        num_parameters(narrow.with_shape(num_hidden_layers=1, intermediate_size=size)) - outside
        for size in (0, 1)
    )
    return outside, without_mlp, with_one - without_mlp


def _explain(teacher: Dims, student: Dims, wanted: int) -> str:
    count = num_parameters(student)
    hidden_step = hidden_multiple(teacher, student.hidden_size)
    step, heads = _hidden_grid(student.hidden_size), student.num_attention_heads
    reason = "" if hidden_step == step else f": of {step}, and of its {heads} query heads"
    grids = {
        "num_hidden_layers": ("layers", ""),
        "hidden_size": ("hidden", f" (multiples of {hidden_step}{reason})"),
        "intermediate_size": ("intermediate", f" (multiples of {INTERMEDIATE_MULTIPLE})"),
    }
    parts = [f"asked {wanted:,}, reached {count:,} ({count / wanted - 1:+.2%})"]
    parts += [
        f"{name} {getattr(teacher, field)} to {getattr(student, field)}{grid}"
        for field, (name, grid) in grids.items()
        if getattr(teacher, field) != getattr(student, field)
    ]
    if student.tie_word_embeddings != teacher.tie_word_embeddings:
        parts.append("an LM head of its own, because the hidden size is reduced by rotation")
    return "; ".join(parts)
