"""Options as environment variables: `--train-data` is `COMPRESS_EXPORT_TRAIN_DATA`, in every command.

The name follows from the option's. A field of the recipe that a command calls by a shorter name, such as
`evaluate --size`, has the variable of its name in `run`, where it is `--eval-size`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from compressor.core.errors import UsageError
from compressor.recipe.layers import Layer

if TYPE_CHECKING:
    from compressor.cli.from_recipe import RecipeOption

PREFIX = "COMPRESS_EXPORT_"
_ON = ("1", "true", "t", "yes", "y", "on")


class PathLines(click.Path):
    """Paths of an option that may be repeated: of its variable one from each line, whatever they hold."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """One path from each line that is not empty."""
        return _lines(rv)


def variable_of(flag: str) -> str:
    """The variable of an option: `COMPRESS_EXPORT_TRAIN_DATA` of `--train-data`."""
    return PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def layer_of(options: Iterable[RecipeOption]) -> Layer:
    """What the environment sets of the fields of these options; an empty variable sets nothing.

    An option that may be repeated takes one entry from each line of its variable.
    """
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for option in options:
        text = os.environ.get(option.variable, "")
        if text.strip():
            values[option.dotted] = tuple(_lines(text)) if option.multiple else text
            names[option.dotted] = option.variable
    return Layer(kind="environment", values=values, names=names)


def give_variables(command: click.Command) -> None:
    """Let click read the options of a command that stand in no recipe, in every command below it too."""
    for one in _commands(command):
        for option in _options(one):
            if not hasattr(option, "dotted"):
                option.envvar = variable_of(max(option.opts, key=len))


def is_set(flag: str) -> bool:
    """Whether the variable of a switch is on."""
    return os.environ.get(variable_of(flag), "").strip().lower() in _ON


def variables(commands: Iterable[click.Command]) -> set[str]:
    """The variables of all options of commands, and of the commands below them."""
    return {
        getattr(option, "variable", None) or variable_of(max(option.opts, key=len))
        for command in commands
        for one in _commands(command)
        for option in _options(one)
    }


def refuse_unknown(known: Iterable[str], environment: Mapping[str, str]) -> None:
    """Refuse a variable that looks as if it were meant for this tool, and is none of its options.

    Raises:
        UsageError: with the nearest names.
    """
    short = [name.removeprefix(PREFIX) for name in known]
    for name in sorted(environment):
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in short:
            near = difflib.get_close_matches(name.removeprefix(PREFIX), short, n=2, cutoff=0.6)
            meant = " or ".join(PREFIX + one for one in near)
            raise UsageError(
                "this environment variable belongs to no option",
                where=name,
                expected=f"{PREFIX} and the name of an option, such as {variable_of('--train-data')}",
                hint=f"did you mean {meant}?" if near else f"unset {name}; --help lists the options",
            )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from _commands(below)


def _options(command: click.Command) -> Iterator[click.Option]:
    return (option for option in command.params if isinstance(option, click.Option))
