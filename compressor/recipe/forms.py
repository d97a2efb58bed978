"""How values are written as text, in a recipe as on the command line; what is no text passes unchanged.

Every function raises ValueError, which pydantic reports with the field it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import BeforeValidator

_MAX_DIGITS = 15  # no model, text or batch is counted in more
_LARGEST = 1e18
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
SIZE = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)([kmb%]?)", re.IGNORECASE)


def parse_count(text: str, *, whole: int | None = None) -> int:
    """`4b`, `4.5B`, `100k`, `4_500_000_000` or, with `whole` given, `60%` of it."""
    match = SIZE.fullmatch(text.strip())
    if match is None or (match[2] == "%" and whole is None):
        accepted = "4b, 4.5B, 100m or 4500000000" + (", or 60%" if whole else "")
        raise ValueError(f"{text[:40]!r} is not a count such as {accepted}")
    number = float(match[1].replace("_", ""))
    if number > _LARGEST:
        raise ValueError(f"{text[:40]}... is too large")
    if match[2] == "%":
        return round(number / 100 * (whole or 0))
    return round(number * _UNITS[match[2].lower()])


def format_count(number: int) -> str:
    """`1.8b` for 1,800,000,000: the shortest text that `parse_count` reads as the same number."""
    for unit, size in (("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if number >= size and parse_count(text := f"{number / size:g}{unit}") == number:
            return text
    return str(number)


def parse_shape(text: str) -> dict[str, int]:
    """`hidden_size=432,num_hidden_layers=30` as a mapping."""
    shape: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if not is_count(size):
            raise ValueError(f"{part!r} is not NAME=NUMBER")
        shape[name.strip()] = int(size)
    return shape


def parse_pairs(text: str, *, mark: str, least: int, form: str) -> tuple[tuple[int, int], ...]:
    """`128/128,1000/1000` as pairs of numbers, `mark` between the two."""
    pairs = []
    for part in text.split(","):
        first, _, second = (word.strip() for word in part.partition(mark))
        if not (is_count(first) and is_count(second) and min(int(first), int(second)) >= least):
            raise ValueError(f"{part!r} is not {form}")
        pairs.append((int(first), int(second)))
    return tuple(pairs)


def parse_integers(text: str) -> tuple[int, ...]:
    """`1,8` as positive whole numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(is_count(part) and int(part) for part in parts):
        raise ValueError(f"{text!r} is not a list of positive numbers")
    return tuple(int(part) for part in parts)


def parse_batches(text: str) -> dict[str, object]:
    """`1,8,32:64,max` as fields of the benchmark: equal batches, one per model, each model's largest."""
    parts = [part.strip() for part in text.split(",")]
    sizes: list[int] = []
    pairs: list[tuple[int, int]] = []
    for part in (part for part in parts if part != "max"):
        numbers = part.split(":")
        if len(numbers) > len(("baseline", "candidate")) or not all(
            is_count(number) and int(number) for number in numbers
        ):
            raise ValueError(f"{part!r} is not a batch size: 8, 32:64 (baseline:candidate) or max")
        if len(numbers) == 1:
            sizes.append(int(part))
        else:
            pairs.append((int(numbers[0]), int(numbers[1])))
    return {"batch_sizes": tuple(sizes), "batch_pairs": tuple(pairs), "largest_batch": "max" in parts}


def parse_names(text: str) -> tuple[str, ...]:
    """`a,b` as a tuple; `none` alone is the empty one."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    return () if names == ("none",) else names


def parse_domain(text: str) -> dict[str, object]:
    """`web=text.jsonl@0.7` as a domain; its weight is 1 if it is left out."""
    name, _, rest = text.partition("=")
    source, mark, weight = rest.rpartition("@")
    if not (mark and _is_number(weight)):
        source, weight = rest, "1"
    if not name.strip() or not source.strip():
        raise ValueError(f"{text!r} is not NAME=SOURCE or NAME=SOURCE@WEIGHT")
    return {"name": name.strip(), "data": source.strip(), "weight": float(weight)}


def is_count(text: str) -> bool:
    """Whether text is a whole number that a size can be: digits as in `128`, not thousands of them."""
    stripped = text.strip()
    return stripped.isascii() and stripped.isdecimal() and len(stripped) <= _MAX_DIGITS


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class FromText:
    """Parses text, and leaves everything else to a field's type."""

    parse: Callable[[str], object]

    def __call__(self, value: object) -> object:
        """What the text says, or the same value."""
        return self.parse(value) if isinstance(value, str) else value


def written(parse: Callable[[str], object]) -> BeforeValidator:
    """A validator that parses text, and leaves everything else to the field's type."""
    return BeforeValidator(FromText(parse))


Tokens = Annotated[int, written(parse_count)]
Shape = Annotated[dict[str, int], written(parse_shape)]
_LENGTHS = partial(parse_pairs, mark="/", least=1, form="ISL/OSL, two positive lengths")
_LAYERS = partial(parse_pairs, mark=":", least=0, form="TEACHER:STUDENT, two layers counted from 0")
Lengths = Annotated[tuple[tuple[int, int], ...], written(_LENGTHS)]
LayerPairs = Annotated[tuple[tuple[int, int], ...], written(_LAYERS)]
Integers = Annotated[tuple[int, ...], written(parse_integers)]
