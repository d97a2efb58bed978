"""Options of a command, made from the sections of the recipe that it uses.

A field's type, default, help and flag stand in the recipe alone. The text of an option goes to the recipe
as it is, which parses and checks it as it does a recipe's value: nothing is parsed here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo

from compressor.cli.completion import complete_model, complete_value
from compressor.cli.environment import layer_of, variable_of
from compressor.cli.session import Show, emit, showing, work
from compressor.core.errors import UsageError
from compressor.recipe.effective import Effective
from compressor.recipe.forms import format_count
from compressor.recipe.layers import Layer
from compressor.recipe.option import OPTIONS, Section, choices_of, declaration_of, section_of
from compressor.recipe.recipe import EVERY, Environment, Recipe, load_recipe

if TYPE_CHECKING:
    from compressor.api import Execution
    from compressor.runs.artifact import ModelArtifact

ENVIRONMENT = tuple(Environment.model_fields)
_READABLE_COUNT = 100_000
_LIST = ",..."  # ends the form of an option that takes several values, separated by commas
# A stage of `compressor.api` with its arguments, but for `out_dir` and `execution`.
Work = Callable[..., "ModelArtifact"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a command was called with.

    Attributes:
        recipe: The recipe, its file and the options together.
        flags: Dotted names of the fields that options set, and the options' flags.
        out_dir: The output directory, if it was named.
        execution: How the library runs it.
    """

    recipe: Recipe
    flags: Mapping[str, str]
    out_dir: Path | None
    execution: Execution


class ChoiceOption(click.Option):
    """An option whose help lists a table's names, read when it is shown; who reads the value checks it.

    Attributes:
        choices: The names, each with a line of help or an empty one.
    """

    def __init__(self, *arguments: Any, choices: Callable[[], Mapping[str, str]], **named: Any) -> None:
        """An option of click with these choices."""
        super().__init__(*arguments, **named)
        self.choices = choices

    def make_metavar(self, *_context: Any, **_named: Any) -> str:
        """The names to choose from, or what click would show."""
        names = self.choices()
        return f"[{'|'.join(names)}]" if names and self.metavar is None else self.metavar or "TEXT"

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The names to choose from, also behind a comma; or files, where that is what it takes."""
        del ctx
        return complete_value(self.choices(), self.metavar, incomplete)

    def rows(self, ctx: click.Context) -> list[tuple[str, str]]:
        """The option as it is written and its help; then its choices, indented, one row each."""
        choices = [(f"  {name}", text) for name, text in self.choices().items() if text]
        return [self.get_help_record(ctx) or ("", ""), *choices]


class RecipeOption(ChoiceOption):
    """An option that sets one field of the recipe."""

    def __init__(
        self, dotted: str, field: FieldInfo, *, flag: str, heading: str, run_flag: str | None = None
    ) -> None:
        """An option for the field at `dotted`, named `flag` (in `run` `run_flag`), under `heading`."""
        self.dotted, self.flag, self.heading, self._field = dotted, flag, heading, field
        self.variable = variable_of(run_flag or flag)
        declared = declaration_of(field)
        is_switch = field.annotation is bool
        kind = None if choices_of(field) else _KINDS.get(_plain(field))
        super().__init__(
            [f"{flag}/--no-{flag.removeprefix('--')}" if is_switch else flag, dotted.replace(".", "__")],
            choices=lambda: choices_of(field),
            default=None,
            multiple=declared.multiple,
            type=None if is_switch else str,
            metavar=declared.metavar or kind,
            help=field.description,
        )

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser keep every value: click would forget all but the last."""
        if self.multiple or self.is_flag:
            super().add_to_parser(parser, ctx)
        else:
            parser.add_option(obj=self, opts=self.opts, dest=self.name, action="append", nargs=self.nargs)

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, Any]:
        """The last value of an option, as in any program.

        Raises:
            UsageError: for several lists, of which the first would be lost although they look like one.
        """
        value, source = super().consume_value(ctx, opts)
        if isinstance(value, list) and not self.multiple:
            if len(value) > 1 and (self.metavar or "").endswith(_LIST):
                raise UsageError(
                    "this option is given more than once, and takes one list",
                    where=self.flag,
                    found=" and ".join(value),
                    hint=f"give one list: {self.flag} {','.join(value)}",
                )
            value = value[-1]
        return value, source

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The option as it is written; its help and its default."""
        names, text = super().get_help_record(ctx) or ("", "")
        if self._field.default in (None, (), {}, ...):
            return names, text
        return names, f"{text}  [default: {_shown(self._field.default)}]"


class RecipeCommand(click.Command):
    """A command whose help groups its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the order in which these come up."""
        rows: dict[str, list[tuple[str, str]]] = {OPTIONS: []}
        for option in self.get_params(ctx):
            if not isinstance(option, click.Option):
                continue
            if isinstance(option, ChoiceOption):
                records = option.rows(ctx)
            else:
                record = option.get_help_record(ctx)
                records = [record] if record else []
            heading = option.heading if isinstance(option, RecipeOption) else _HEADINGS.get(option.name)
            rows.setdefault(heading or OPTIONS, []).extend(records)
        rows[EVERY] = rows.pop(EVERY, [])
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def from_recipe(
    *names: str,
    own: str = "",
    but: tuple[str, ...] = (),
    output: str | None = "Directory to write.",
    model: str = "[MODEL]",
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command with the options of sections, called with a `Call` that holds the recipe they make.

    Its argument `model`, or the first of `models`, is the recipe's model; options of its own stand below.

    Args:
        names: Dotted names of sections and fields; the fields that all commands share are added.
        own: The section that the command is about: its flags go without the section's prefix.
        but: Dotted names of what is left out.
        output: Help of a required `--output-dir`; None where the command says it itself.
        model: What the argument is called in the usage; with dots, there may be several.
    """
    argument = _model_argument(model)
    fields = [found for name in (*names, *ENVIRONMENT) for found in _options(name, own, but)]

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def command(**flags: Any) -> None:
            from compressor.api import Execution

            options, config = _given(fields, flags), flags.pop("config")
            if "model" not in options.values and config is None:
                raise UsageError(
                    "MODEL is missing", hint="name a model, or a recipe that names one: --config recipe.yaml"
                )
            file, environment = Path(config) if config else None, layer_of(fields)
            if flags.pop("print_config"):
                effective = Effective(file, environment, options)
                emit(effective.to_json(), flags["show"], effective.to_yaml())
                return
            spoken = dict(options.names)
            recipe = load_recipe(file, options.values, flags=spoken, environment=environment)
            execution = Execution(
                environment=Environment(**{name: getattr(recipe, name) for name in ENVIRONMENT}),
                **{name: flags.pop(name) for name in ("resume", "overwrite", "check")},
            )
            where = flags.pop("output_dir", None)
            out_dir = Path(where) if where else None
            function(Call(recipe=recipe, flags=spoken, out_dir=out_dir, execution=execution), **flags)

        # Click takes the parameters of the innermost decorator last.
        own_options = command.__dict__.pop("__click_params__", [])
        shown = showing(command)
        recipe_options = [*reversed([*_shared(output), *fields]), *shown.__dict__.pop("__click_params__")]
        shown.__dict__["__click_params__"] = [*recipe_options, *own_options, argument]
        return click.command(cls=RecipeCommand)(shown)

    return decorate


def _model_argument(metavar: str) -> click.Argument:
    """MODEL, or with dots one or more of them."""
    is_one = not metavar.endswith("...")
    return click.Argument(
        ["model" if is_one else "models"],
        metavar=metavar,
        nargs=1 if is_one else -1,
        required=not is_one,
        shell_complete=complete_model,
    )


def _given(fields: Sequence[RecipeOption], flags: dict[str, Any]) -> Layer:
    """What the command line says of the recipe, and its model; the options are taken out of `flags`."""
    given = {
        option.dotted: value for option in fields if (value := flags.pop(str(option.name))) not in (None, ())
    }
    names = {option.dotted: option.flag for option in fields if option.dotted in given}
    models = flags.get("models") or (flags.pop("model", None),)
    named = {} if models[0] is None else {"model": models[0]}
    return Layer(kind="option", values={**given, **named}, names=names)


def stage_command(
    *,
    text: Callable[[ModelArtifact], str] | None = None,
    result: Callable[[ModelArtifact], Mapping[str, object]] | None = None,
) -> Callable[[Callable[..., Work]], Callable[..., None]]:
    """Make a command of a function that names a stage: run it as the call says, and print what it made.

    Args:
        text: Its result for people; by default where it is and what it was made by.
        result: Its result for programs; by default the stage's record.
    """

    def decorate(function: Callable[..., Work]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(call: Call, *, show: Show, **flags: Any) -> None:
            stage = function(call, **flags)
            with work(show, call.recipe.device) as console:
                execution = replace(call.execution, console=console)
                made = stage(out_dir=call.out_dir or Path(), execution=execution)
            emit((result or _record)(made), show, (text or _sentence)(made))

        return command

    return decorate


def _sentence(made: ModelArtifact) -> str:
    return f"{made.path}: {made.num_parameters:,} parameters, {' > '.join(made.lineage)}"


def _record(made: ModelArtifact) -> dict[str, object]:
    """A stage command's JSON document."""
    return {
        "schema": "compress-export/stage/1",
        "stage": made.stage,
        "path": str(made.path),
        "fingerprint": made.fingerprint,
        "lineage": list(made.lineage),
        "num_parameters": made.num_parameters,
        "details": made.details,
    }


def section_options(name: str) -> list[RecipeOption]:
    """The options of a section for a command that is about it and takes no MODEL."""
    return list(_options(name, name, ()))


def fields_under(section: str, *headings: str, but: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Dotted names of a section's fields that stand under these headings, apart from those in `but`."""
    return tuple(option.dotted for option in _options(section, "", but) if option.heading in headings)


def _options(name: str, own: str, but: tuple[str, ...]) -> Iterator[RecipeOption]:
    """The options of a field, or of every field of a section and of the sections inside it."""
    section: type[Section] = Recipe
    *above, leaf = name.split(".")
    for part in above:
        section = section_of(section.model_fields[part]) or section
    field = section.model_fields[leaf]
    if name in but:
        return
    if inner := section_of(field):
        for below in inner.model_fields:
            yield from _options(f"{name}.{below}", own, but)
        return
    declared, is_own = declaration_of(field), bool(own) and own == ".".join(above)
    run_flag = declared.flag if declared.flag is not None else _flag(section.prefix, leaf)
    if run_flag:
        flag = _flag("", leaf) if is_own and section.prefix else run_flag
        heading = OPTIONS if is_own else declared.heading or section.heading
        yield RecipeOption(name, field, flag=flag, heading=heading, run_flag=run_flag)


def _flag(prefix: str, leaf: str) -> str:
    return f"--{'-'.join(part for part in (prefix, *leaf.split('_')) if part)}"


def _shared(output: str | None) -> list[click.Option]:
    """Options of every command that works on a recipe."""
    where = click.Option(["-o", "--output-dir"], type=click.Path(), required=True, help=output)
    return [
        *([where] if output else []),
        click.Option(
            ["--config"],
            type=click.Path(),
            help="Recipe in YAML that sets any of these options; those on the command line override it.",
        ),
        click.Option(
            ["--print-config"],
            is_flag=True,
            help="Print the recipe that is used, with where each value comes from, and do nothing else.",
        ),
        click.Option(
            ["--resume"], is_flag=True, help="Resume an interrupted run, and fail if there is none."
        ),
        click.Option(
            ["--overwrite"],
            is_flag=True,
            help="Delete this tool's earlier output in the directory and start over.",
        ),
        click.Option(
            ["--check/--no-check"],
            default=True,
            help="Compare files that finished stages wrote with their recorded sha256.  [default: on]",
        ),
    ]


_HEADINGS: dict[str | None, str] = dict.fromkeys(
    ("print_config", "resume", "overwrite", "check", "as_json", "quiet", "verbose", "debug", "help"), EVERY
)
_KINDS: dict[object, str] = {int: "INTEGER", float: "NUMBER"}


def _plain(field: FieldInfo) -> object:
    """The type of a field's value, without None."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    return kinds[0] if kinds else field.annotation


def _shown(value: object) -> str:
    """A default as it would be written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join("/".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return format_count(value) if isinstance(value, int) and value >= _READABLE_COUNT else str(value)
