"""How options are put on a command, and how the values of several are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_MAX_DIGITS = 15


class Count(click.IntRange):
    """A whole number of things: at least `min`, and no larger than anything can be counted to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.IntRange`; numbers of many digits end here, not deep inside a library."""
        number = super().convert(value, param, ctx)
        if number >= 10**_MAX_DIGITS:
            self.fail(f"a number of {len(str(value))} digits is too large.", param, ctx)
        return number


# NumPy's generators take no larger seeds.
SEED = click.IntRange(0, (1 << 32) - 1)


def apply_options(function: Command, options: list[Any]) -> Command:
    """Decorate a command with options, the first shown first."""
    for option in reversed(options):
        function = option(function)
    return function


def is_count(text: str) -> bool:
    """Whether text is a whole number that a size can be: digits as in `128`, not thousands of them."""
    stripped = text.strip()
    return stripped.isascii() and stripped.isdecimal() and len(stripped) <= _MAX_DIGITS


def parse_shape(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`hidden_size=432,num_hidden_layers=30` as a mapping."""
    if value is None:
        return None
    shape: dict[str, int] = {}
    for part in value.split(","):
        name, _, size = part.partition("=")
        if not is_count(size):
            raise click.BadParameter(f"{part!r} is not NAME=NUMBER")
        shape[name.strip()] = int(size)
    return shape


def parse_pairs(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`128/128,1000/1000` as pairs of input and output length."""
    if value is None:
        return None
    pairs = []
    for part in value.split(","):
        isl, _, osl = part.partition("/")
        if not (is_count(isl) and is_count(osl) and int(isl) and int(osl)):
            raise click.BadParameter(f"{part!r} is not ISL/OSL, two positive lengths")
        pairs.append((int(isl), int(osl)))
    return tuple(pairs)


def parse_list(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`a,b` as a tuple."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def parse_integers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`1,8` as a tuple of positive integers."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(is_count(part) and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of positive numbers")
    return tuple(int(part) for part in parts)


def parse_batches(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`1,8,32:64,max` as the recipe's fields: equal batches, one per model, each model's largest."""
    if value is None:
        return None
    sizes: list[int] = []
    pairs: list[tuple[int, int]] = []
    parts = [part.strip() for part in value.split(",")]
    for part in parts:
        numbers = part.split(":")
        if part == "max":
            continue
        if len(numbers) > len(("baseline", "candidate")) or not all(
            is_count(number) and int(number) for number in numbers
        ):
            raise click.BadParameter(f"{part!r} is no batch size: 8, 32:64 (baseline:candidate) or max")
        if len(numbers) == 1:
            sizes.append(int(part))
        else:
            pairs.append((int(numbers[0]), int(numbers[1])))
    return {"batch_sizes": tuple(sizes), "batch_pairs": tuple(pairs), "largest_batch": "max" in parts}
