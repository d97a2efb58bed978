"""The HTML report in a real browser, at desktop and phone width."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.report.results import (
    Absent,
    CellResult,
    Interval,
    NotMeasured,
    Quality,
    Rates,
    Results,
    Roofline,
)
from bench.report.write import HTML_FILE, write_reports
from tests.integration.browser import Visit, find_chromium, screenshot, scroll_width, visit
from tests.unit.bench.results_by_hand import arm_record, cell_of, gpu, results_of

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium: apt-get install chromium")

DESKTOP, PHONE = 1280, 390
NARROWEST_WINDOW = 500  # of a browser; a phone's width is had in a frame and in a picture
PAIRS = (
    ("teacher-fp32", "student-fp32", 1.8),
    ("student-fp32", "student-int4", 1.7),
    ("teacher-fp32", "student-int4", 2.9),
)
LONG_NAME = "smollm2-135m-num_hidden_layers=24+intermediate_size=1024-fp32"
SPREAD = (1.0, 1.01, 0.99, 1.02, 0.98)


class Cells(HTMLParser):
    """Unrounded values of table rows, by the row's key."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[float]] = {}
        self.cards: dict[str, list[float]] = {}
        self._row: list[float] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "tr":
            self._row = []
        for attribute, rows in (("data-row", self.rows), ("data-card", self.cards)):
            if key := found.get(attribute):
                self._row = rows.setdefault(key, [])
        if value := found.get("data-value"):
            self._row.append(float(value))


def measured(ratio: float, factor: float) -> CellResult:
    roofline = Roofline(
        baseline_floor_s=0.2, candidate_floor_s=0.1, best_speedup=2.0, reached=ratio / 2,
        baseline_share=0.2, candidate_share=0.1,
    )  # fmt: skip
    latencies = [factor * value for value in SPREAD]
    cell = cell_of(latencies, [value / ratio for value in reversed(latencies)])
    return cell.model_copy(update={"roofline": roofline, "batch_size": int(8 * factor)})


@pytest.fixture(scope="module")
def results() -> Results:
    failed = CellResult(isl=9, osl=9, batch_size=64, status="FAIL", reason="out of <memory> & more")
    noisy = cell_of([2.0, 1.0] * 5, [1.0, 2.0] * 5).model_copy(update={"batch_size": 32})
    empty = results_of([], gpus=(gpu(),))
    comparison = empty.comparisons[0]
    return empty.model_copy(
        update={
            "arms": tuple(
                arm_record(model, "0", precision)
                for model, precision in (("teacher", "fp32"), ("student", "fp32"), ("student", "int4"))
            ),
            "comparisons": tuple(
                comparison.model_copy(
                    update={
                        "baseline": first,
                        "candidate": second,
                        "cells": (measured(ratio, 1.0), measured(ratio, 2.0), noisy, failed),
                    }
                )
                for first, second, ratio in PAIRS
            ),
            "quality": (
                Quality(model="teacher", metric="perplexity", value=19.8),
                Quality(model="student", metric="perplexity", value=27.3),
            ),
            "rates": Rates(bandwidth_bytes_per_s=2e10, matmul_ops_per_s={"fp32": 2e11}, device="a CPU"),
            "not_measured": (NotMeasured(what="student FP8", reason="no kernels on this CPU"),),
        }
    )


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    write_reports(results, directory)
    return directory / HTML_FILE


@pytest.fixture(scope="module", params=[DESKTOP, NARROWEST_WINDOW])
def seen(page: Path, request: pytest.FixtureRequest) -> Visit:
    return visit(page, width=request.param)


def test_the_page_complains_of_nothing_and_asks_for_nothing(seen: Visit) -> None:
    assert seen.console_errors == ()
    assert seen.requests == ()


def test_a_page_that_does_either_is_caught(tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oops')</script>")
    found = visit(other)
    assert found.requests == ("http://127.0.0.1:9/x.png",)
    assert "oops" in found.console_errors[0]


def test_its_numbers_are_those_of_the_json(seen: Visit, results: Results) -> None:
    shown = Cells()
    shown.feed(seen.dom)
    checked = 0
    for comparison in results.comparisons:
        for cell in comparison.cells:
            pair = f"{comparison.candidate}|{comparison.baseline}"
            expected = [cell.speedup.ratio] if cell.speedup and cell.status == "ok" else []
            assert shown.cards[f"{pair}|{cell.label}"] == expected
            for metric in ("output_tokens_per_s", "total_tokens_per_s", "latency_s", "ttft_s", "tpot_s"):
                assert shown.rows[f"{pair}|{metric}|{cell.label}"] == numbers(cell, metric)
                checked += 1
    assert checked == 3 * 4 * 5


def numbers(cell: CellResult, metric: str) -> list[float]:
    """What a row must show: medians of both arms and the ratio."""
    found = []
    for arm in (cell.baseline, cell.candidate):
        summary = arm.metrics[metric] if arm else None
        if summary is not None and not isinstance(summary, Absent):
            found.append(summary.median)
    ratio = cell.ratios.get(metric)
    return [*found, ratio.ratio] if isinstance(ratio, Interval) else found


def test_every_chart_and_every_section_is_there(seen: Visit) -> None:
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", seen.dom)
    for kind in ("Throughput by batch", "Latency against throughput", "What each change", "Quality against"):
        assert any(title.startswith(kind) for title in titles), kind
    assert seen.dom.count("<svg") == len(titles)
    for heading in ("Models and memory", "Not measured", "How it was measured", "Environment"):
        assert f"<h2>{heading}</h2>" in seen.dom
    assert "out of &lt;memory&gt; &amp; more" in seen.dom


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path, width: int) -> None:
    text = page.read_text(encoding="utf-8").replace("student-fp32", LONG_NAME)
    assert scroll_width(text, tmp_path, width=width) <= width


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_is_drawn(page: Path, tmp_path: Path, width: int) -> None:
    image = screenshot(page, tmp_path / "page.png", width=width, height=2000)
    assert image.stat().st_size > 20_000
