"""Text from outside (names of models, files and domains, messages of libraries) where it is shown.

A name is data: in a terminal it moves no cursor, in Markdown it makes no link, element or table, and in a
spreadsheet it is no formula. Text without such characters stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# What CommonMark, or GitHub's Markdown, takes for more than letters inside a line.
_MARKDOWN = re.compile(
    r"[\\`|*]"
    r"|<(?=[A-Za-z/!?])"  # a tag, a comment, <https://...>
    r"|\](?=[(\[:])"  # the middle of a link, the end of a reference
    r"|&(?=#?[A-Za-z0-9]+;)"  # an entity
    r"|~(?=~)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
    r"|:(?=//)|(?<=\bwww)\.",  # bare links
    re.IGNORECASE,
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class Markdown(str):
    """Text that is Markdown already, made of parts that were escaped."""

    __slots__ = ()


def printable(text: str) -> str:
    """Text for a terminal: control characters, and bytes that are no text, as escapes; lines stay lines."""
    return "".join(one if one.isprintable() or one in "\n\t" else _escaped(one) for one in text)


def one_line(text: str) -> str:
    """Text on a single line, its white space drawn together."""
    return printable(" ".join(text.split()))


def markdown_text(text: str) -> Markdown:
    """Text inside a line, or a table's cell, of Markdown: shown letter by letter."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_MARKDOWN.sub(lambda match: f"\\{match[0]}", one_line(text)))


def markdown_row(cells: Sequence[str]) -> Markdown:
    """One line of a table, its cells shown letter by letter."""
    return Markdown(f"| {' | '.join(map(markdown_text, cells))} |")


def markdown_code(text: str) -> str:
    """Text as code inside a line of Markdown, its fence longer than any in the text; not for tables."""
    line = one_line(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"{fence}{line}{fence}"


def spreadsheet_cell(value: object) -> object:
    """A CSV cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
