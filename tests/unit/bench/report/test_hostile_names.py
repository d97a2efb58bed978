"""Reports of models whose names are HTML, Markdown or formulas, read back by parsers."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from bench.compare.gate import compare_results
from bench.compare.gate_report import render_gate
from bench.report.csv_table import render_csv
from bench.report.html import render_html
from bench.report.markdown import render_markdown
from bench.report.results import CellResult, Quality, Results
from compressor.core.hardware import Machine
from compressor.pipeline.report import write_model_card
from compressor.pipeline.summary import DistillRecord
from tests.unit.bench.results_by_hand import cell_of, results_of
from tests.unit.core.test_escaping import NAMES
from tests.unit.pipeline.test_report import summary_of

# One of each kind, and all at once; `test_escaping` takes every one alone.
HOSTILE = [*NAMES[:20:4], NAMES[5], "two\nlines", " ".join(NAMES)]
SINGLE_LINES = [name for name in HOSTILE if name.isprintable()]


def named(name: str) -> Results:
    """A benchmark in which everything that can carry a name carries this one."""
    results = results_of([cell_of([2.0, 2.01] * 3, [1.0, 1.01] * 3)])
    text = results.model_dump_json(by_alias=True)
    for part in ("teacher", "student"):
        text = text.replace(part, json.dumps(f"{name} {part}")[1:-1])
    made = Results.model_validate_json(text)
    quality = Quality(model=f"{name} teacher", metric="perplexity", value=9.0)
    failed = CellResult(isl=8, osl=9, batch_size=2, status="FAIL", reason=name)
    cells = (*made.comparisons[0].cells, failed)
    comparison = made.comparisons[0].model_copy(update={"cells": cells})
    return made.model_copy(update={"quality": (quality,), "comparisons": (comparison,)})


class Outline(HTMLParser):
    """Elements and the names of their attributes, counted; and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[f"{tag} {' '.join(name for name, _ in attrs)}"] += 1

    def handle_comment(self, data: str) -> None:
        self.elements["comment"] += 1

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_adds_no_element_and_no_attribute_to_the_page(name: str) -> None:
    page = Outline(render_html(named(name)))
    assert page.elements == Outline(render_html(named("plain"))).elements
    assert name in "".join(page.text)


def kinds(markdown: str) -> Counter[str]:
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    found: Counter[str] = Counter()
    for token in parser.parse(markdown):
        found.update(child.type for child in (token.children or [token]))
    # An escaped character stands as a token of its own.
    for name in ("text", "text_special"):
        del found[name]
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_adds_nothing_to_the_markdown_report(name: str) -> None:
    assert kinds(render_markdown(named(name))) == kinds(render_markdown(named("plain")))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_adds_nothing_to_the_gate(name: str) -> None:
    shown = render_gate(compare_results(named(name), named("plain")))
    assert kinds(shown) == kinds(render_gate(compare_results(named("plain "), named("plain"))))


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", *HOSTILE])
def test_a_spreadsheet_finds_names_as_text(name: str) -> None:
    rows = list(csv.reader(io.StringIO(render_csv(named(name)))))
    assert rows[1][0].removeprefix("'") == f"{name} teacher-fp32"
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("name", SINGLE_LINES)
def test_a_name_adds_nothing_to_the_model_card(tmp_path: Path, name: str) -> None:
    def card(title: str) -> str:
        parts = {
            "warnings": (f"{title} is odd",),
            "versions": {"torch": title},
            "hardware": Machine(system="Linux", cpu=title, num_cpus=2, memory_bytes=8),
            "distill": DistillRecord(tokens=1, loss=title, loss_rule=title),
        }
        summary = summary_of(title, f"{title}.txt").model_copy(update=parts)
        directory = tmp_path / ("plain" if title == "plain" else "odd")
        directory.mkdir(exist_ok=True)
        write_model_card(directory, summary)
        return (directory / "README.md").read_text(encoding="utf-8")

    _, front, body = card(name).split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == name
    assert kinds(body) == kinds(card("plain").split("---\n", 2)[2])
