"""Names as data; the second pair of eyes is a parser: Python's own for HTML, markdown-it for Markdown."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from compressor.core.escaping import (
    markdown_code,
    markdown_row,
    markdown_text,
    one_line,
    printable,
    spreadsheet_cell,
)

NAMES = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</td></table><h1>x",
    "<!-- hidden",
    "<https://evil.example>",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "[x][y]",
    "[x]: http://evil.example",
    "\\[x](javascript:alert(1))",
    "\\<b>bold</b>",
    "http://evil.example/?a=1",
    "www.evil.example",
    "a|b | c",
    "`code` and ``more``",
    "`[x](javascript:alert(1))",
    "**bold** _em_ ~~gone~~",
    "&lt;b&gt; &#60;i&#62; &amp;",
    "two\nlines\r\n\n# heading",
    "tab\tand \x1b[31mred\x07",
]
PLAIN = [
    "student-int4",
    "HuggingFaceTB/SmolLM2-135M",
    "bf16+2:4",
    "my_model_v2",
    "2.00x [1.95, 2.05]",
    "1/2 ± 3 % – ok, < 5",
    "the first 90 % of text.jsonl",
    "C++ & Rust: 4 > 3!",
]


def shown(markdown: str) -> tuple[str, set[str]]:
    """What a reader sees of one line of GitHub's Markdown, and which kinds of tokens it is made of."""
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    tokens = [child for token in parser.parse(markdown) for child in (token.children or [token])]
    text = "".join(token.content for token in tokens if token.type in ("text", "code_inline", "text_special"))
    return text, {token.type for token in tokens}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_markdown_is_nothing_but_text(name: str) -> None:
    text, kinds = shown(f"# before {markdown_text(name)} after")
    assert text == f"before {one_line(name)} after"
    assert kinds <= {"text", "text_special", "heading_open", "heading_close"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_as_code_ends_with_the_code(name: str) -> None:
    text, kinds = shown(f"before {markdown_code(name)} after")
    assert text.replace(" ", "") == f"before{one_line(name)}after".replace(" ", "")
    assert kinds == {"text", "code_inline", "paragraph_open", "paragraph_close"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_table_is_one_cell(name: str) -> None:
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    tokens = parser.parse("\n".join([markdown_row(["a", "b"]), "|---|---|", markdown_row([name, "end"])]))
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content for cell in cells][-1] == "end"
    assert len(cells) == 4
    kinds = {child.type for cell in cells for child in cell.children or []}
    assert kinds <= {"text", "text_special"}


@pytest.mark.parametrize("name", PLAIN)
def test_ordinary_text_stays_as_it_is(name: str) -> None:
    assert markdown_text(name) == printable(name) == spreadsheet_cell(name) == name
    assert markdown_code(name) == f"`{name}`"


def test_what_is_markdown_already_is_not_escaped_again() -> None:
    once = markdown_text("a|b")
    assert markdown_text(once) == once
    assert markdown_row([once, "c"]) == "| a\\|b | c |"


def test_a_terminal_gets_no_control_characters() -> None:
    text = printable("red \x1b[31m\x9b1m\x07 \u202egnp.exe \udc80 é 日本 \n next")
    assert text == "red \\x1b[31m\\x9b1m\\x07 \\u202egnp.exe \\udc80 é 日本 \n next"
    text.encode("utf-8")


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_finds_no_formula(name: str) -> None:
    assert spreadsheet_cell(name) == f"'{name}"


def test_numbers_stay_numbers() -> None:
    assert [spreadsheet_cell(value) for value in (-1.5, 0, None, "")] == [-1.5, 0, None, ""]
