"""How options are put on a command, and how the values of several are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def apply_options(function: Command, options: list[Any]) -> Command:
    """Decorate a command with options, the first shown first."""
    for option in reversed(options):
        function = option(function)
    return function


def parse_shape(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`hidden_size=432,num_hidden_layers=30` as a mapping."""
    if value is None:
        return None
    shape: dict[str, int] = {}
    for part in value.split(","):
        name, _, size = part.partition("=")
        if not size.strip().isdigit():
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
        if not (isl.strip().isdigit() and osl.strip().isdigit() and int(isl) and int(osl)):
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
    if not all(part.isdigit() and int(part) for part in parts):
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
            number.isdigit() and int(number) for number in numbers
        ):
            raise click.BadParameter(f"{part!r} is no batch size: 8, 32:64 (baseline:candidate) or max")
        if len(numbers) == 1:
            sizes.append(int(part))
        else:
            pairs.append((int(numbers[0]), int(numbers[1])))
    return {"batch_sizes": tuple(sizes), "batch_pairs": tuple(pairs), "largest_batch": "max" in parts}
