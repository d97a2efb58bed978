"""Pages and Markdown that were written of hostile input: whether any of it became more than text."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

from tests.fuzz.mutations import MARK

# What a page of ours consists of; tests of the page look at it in a browser.
_ELEMENTS = frozenset(
    {
        *(
            "html",
            "head",
            "meta",
            "link",
            "title",
            "style",
            "body",
            "main",
            "header",
            "footer",
            "section",
            "article",
        ),
        *(
            "h1",
            "h2",
            "h3",
            "h4",
            "p",
            "ul",
            "ol",
            "li",
            "dl",
            "dt",
            "dd",
            "code",
            "pre",
            "em",
            "strong",
            "b",
        ),
        *(
            "table",
            "caption",
            "thead",
            "tbody",
            "tfoot",
            "tr",
            "th",
            "td",
            "div",
            "span",
            "figure",
            "br",
            "hr",
        ),
        *(
            "figcaption",
            "details",
            "summary",
            "svg",
            "g",
            "line",
            "polyline",
            "circle",
            "rect",
            "text",
            "path",
        ),
        *(
            "i",
            "small",
            "colgroup",
            "col",
            "sup",
            "sub",
            "abbr",
            "nav",
            "a",
            "tspan",
            "desc",
            "polygon",
            "ellipse",
        ),
    }
)
_SHOWN = ("title", "aria-label", "data-value", "alt", "content")  # attributes that only show their text


def problems_of_pages(directory: Path) -> Iterator[str]:
    """What is wrong with the pages and Markdown files below a directory."""
    for path in sorted(directory.rglob("*")):
        if path.suffix == ".html":
            yield from html_problems(path.read_text(encoding="utf-8"))
        elif path.suffix == ".md":
            yield from markdown_problems(path.read_text(encoding="utf-8"))


def html_problems(page: str) -> list[str]:
    """Elements and attributes that came from a text."""
    found = _Outline()
    found.feed(page)
    found.close()
    return found.problems


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _ELEMENTS:
            self.problems.append(f"an element of the page: {tag}")
        for name, value in attrs:
            is_shown = name in _SHOWN
            if name.startswith("on") or MARK in name or (MARK in (value or "") and not is_shown):
                self.problems.append(f"an attribute of the page: {tag} {name}")

    def handle_comment(self, data: str) -> None:
        if MARK in data:
            self.problems.append("a comment of the page")


def markdown_problems(text: str) -> Iterator[str]:
    """HTML, links and images that came from a text."""
    body = text.split("---\n", 2)[-1] if text.startswith("---\n") else text
    for token in MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(body):
        for part in (token, *(token.children or ())):
            if part.type in ("html_inline", "html_block") and MARK in part.content:
                yield f"HTML in Markdown: {part.content[:60]!r}"
            if part.type in ("link_open", "image", "fence") and MARK in f"{part.attrs} {part.info}":
                yield f"{part.type} in Markdown: {part.attrs}"
