"""How a field of the recipe declares an option: its help, its flag, and what it decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

OPTIONS = "Options"


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen.

    Attributes:
        heading: The heading that its options stand under in a command's help.
        prefix: What the flags of its fields begin with, where a field does not say otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    heading: ClassVar[str] = OPTIONS
    prefix: ClassVar[str] = ""


class Explained(Protocol):
    """An entry of a table of choices."""

    @property
    def help(self) -> str:
        """One line for those who choose."""


@dataclass(frozen=True, eq=False)
class OneOf:
    """A check of a name against a table, made when a value is read: entries may be added until then."""

    table: Mapping[str, Explained]

    def __call__(self, name: str) -> str:
        """The name, if the table has it."""
        if name not in self.table:
            raise ValueError(f"{name!r} is none of {', '.join(self.table)}")
        return name


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a field says about itself beside its type, default and help; see `option`."""

    flag: str | None = None
    heading: str | None = None
    course: bool = False
    metavar: str | None = None
    multiple: bool = False


def option(
    default: Any,
    text: str,
    *,
    flag: str | None = None,
    heading: str | None = None,
    course: bool = False,
    metavar: str | None = None,
    multiple: bool = False,
    **checks: Any,
) -> Any:
    """A field of a recipe section, declared once: the command line is generated from it.

    Args:
        default: Its value where nobody says otherwise; `...` for a required one.
        text: One sentence that is understandable without its neighbours; choices and the default are added.
        flag: Its name on the command line where it is not the section's prefix and the field's name; an
            empty one for what only a recipe sets.
        heading: The heading in the help, where it is not the section's.
        course: It decides how a run goes (logging, memory, saving), not a byte of its result; a field that
            is not marked decides content, and another value of it makes another result.
        metavar: How its value is written, where the type does not say it.
        multiple: The flag may be repeated, for one entry of a tuple each time.
        checks: Bounds of pydantic's `Field`, such as `ge=1`.
    """
    declared = Declaration(flag=flag, heading=heading, course=course, metavar=metavar, multiple=multiple)
    return Field(default, description=text, json_schema_extra=asdict(declared), **checks)


def declaration_of(field: FieldInfo) -> Declaration:
    """What a field was declared with; a field without `option` has a flag and decides content."""
    extra = field.json_schema_extra
    return Declaration(**extra) if isinstance(extra, dict) else Declaration()  # type: ignore[arg-type]


def content_of(config: BaseModel) -> dict[str, object]:
    """The fields of a configuration that decide bytes, as JSON values; sections inside it likewise."""
    values: dict[str, object] = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if declaration_of(field).course:
            del values[name]
        elif isinstance(value, BaseModel):
            values[name] = content_of(value)
    return values


def leaves_of(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every single value of a section and of the sections inside it, with its dotted name."""
    for name, field in section.model_fields.items():
        inner = section_of(field)
        if inner is None:
            yield prefix + name, field
        else:
            yield from leaves_of(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field is, or None for a single value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def choices_of(field: FieldInfo) -> dict[str, str]:
    """The names that a field's value, or each entry of it, is one of, with a line of help for each."""
    return dict(_choices(field.annotation, *field.metadata))


def _choices(*kinds: object) -> Iterator[tuple[str, str]]:
    for kind in kinds:
        if get_origin(kind) is Literal:
            yield from ((str(name), "") for name in get_args(kind))
        elif isinstance(kind, AfterValidator) and isinstance(kind.func, OneOf):
            yield from ((name, row.help) for name, row in kind.func.table.items())
        else:
            yield from _choices(*get_args(kind))


def fields_of(content: dict[str, object], *names: str) -> dict[str, object]:
    """Of a configuration's content, what one stage reads; a name that is not there is a mistake of ours."""
    return {name: content[name] for name in names}


def unless_neutral(content: dict[str, object], **neutral: object) -> dict[str, object]:
    """Content without options that are as they were before they could be chosen.

    What was made when an option did not exist is then still what is asked for.
    """
    return {name: value for name, value in content.items() if name not in neutral or value != neutral[name]}
