"""The page of a whole run: its numbers against the run's JSON and plan, and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compressor.pipeline.page.write import render_page
from compressor.pipeline.summary import PAGE_FILE, RunSummary, read_summary
from tests.good_teacher import teach_well
from tests.integration.browser import find_chromium, screenshot, scroll_width, visit
from tests.integration.command import succeed_here, write_recipe
from tests.unit.bench.results_by_hand import arm_record, cell_of, results_of

needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium: apt-get install chromium")
DESKTOP, PHONE, NARROWEST_WINDOW = 1280, 390, 500
EVIL = "a<img src=q onerror=alert(1)>&'\""
_BOX = re.compile(r"M[\d.]+ [\d.]+h([\d.]+)v([\d.]+)h-[\d.]+z")


class Marked(HTMLParser):
    """Unrounded values of rows and cards by their keys, and the drawings of what was removed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[float]] = {}
        self.cards: dict[str, float] = {}
        self.removed: dict[str, tuple[int, int]] = {}
        self.areas: dict[str, dict[str, float]] = {}
        self._row: list[float] = []
        self._axis = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if tag == "tr":
            self._row = self.rows.setdefault(found.get("data-row", ""), [])
        if tag == "figure":
            self._axis = found.get("data-removed", "")
            if self._axis:
                self.removed[self._axis] = int(found["data-kept"]), int(found["data-of"])
        if tag == "path" and self._axis:
            kind = found["class"].split()[0]
            areas = self.areas.setdefault(self._axis, {"kept": 0.0, "gone": 0.0})
            areas[kind] += sum(float(width) * float(height) for width, height in _BOX.findall(found["d"]))
        if "data-card" in found and "data-value" in found:
            self.cards[found["data-card"]] = float(found["data-value"])
        elif "data-value" in found:
            self._row.append(float(found["data-value"]))


def run_below(root: Path, model: Path, text: Path, **sections: Any) -> tuple[Path, dict[str, Any]]:
    """The directory and the summary of a run."""
    recipe = write_recipe(root / "recipe.yaml", model, text, **sections)
    return root / "out", succeed_here("run", "--config", recipe, "-o", root / "out")


@pytest.fixture(scope="module")
def finished(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of a tiny model long enough for a forecast, with a gate; not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        teach_well(monkeypatch)
        return run_below(
            tmp_path_factory.mktemp("runs"),
            *(tiny_checkpoint, tiny_text),
            repair={"method": "off"},
            distill={"tokens": 40 * 4 * 32, "micro_batch_size": 4, "learning_rate": 5e-3},
            quantize={"fp8": True},
            export={"formats": ["huggingface", "huggingface-fp8"]},
            gates={"perplexity": 1e9},
        )


@pytest.fixture(scope="module")
def page(finished: tuple[Path, dict[str, Any]]) -> Path:
    return finished[0] / PAGE_FILE


@pytest.fixture(scope="module")
def marked(page: Path) -> Marked:
    found = Marked()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def test_the_cards_are_the_evaluations(finished: tuple[Path, dict[str, Any]], marked: Marked) -> None:
    models = finished[1]["evaluation"]["models"]
    expected = {name: found["perplexity"] for name, found in models.items()}
    assert {name: value for name, value in marked.cards.items() if name != "closed"} == expected
    nll = {name: found["mean_nll"] for name, found in models.items()}
    gap = (nll["pruned"] - nll["distilled"]) / (nll["pruned"] - nll["teacher"])
    assert marked.cards.get("closed", gap) == pytest.approx(gap)


def test_the_forecast_is_the_records(finished: tuple[Path, dict[str, Any]], marked: Marked) -> None:
    found = finished[1]["distill"]["forecast"]
    end, twice = found["at_quarter"]["path"][-1], found["at_end"]["twice"]
    assert marked.rows["quarter"] == [
        *(found["at_quarter"]["made_at"], end["loss"], end["low"], end["high"]),
        found["validation"]["loss"][-1],
    ]
    assert marked.rows["twice"] == [40, twice["loss"], twice["low"], twice["high"]]
    card = (finished[0] / "README.md").read_text()
    assert f"forecast at a quarter, {end['loss']:.3f} from {end['low']:.3f} to {end['high']:.3f}\n" in card


def test_the_artifacts_are_what_lies_in_the_directory(
    finished: tuple[Path, dict[str, Any]], marked: Marked
) -> None:
    out, summary = finished
    models = summary["evaluation"]["models"]
    for name, place, evaluated in (
        ("huggingface", "student", "distilled"),
        ("huggingface-fp8", "exports/huggingface-fp8", "quantized"),
    ):
        files = (path for path in (out / place).rglob("*") if path.is_file() and path.name != "artifact.json")
        # The student itself is compared bit by bit, without logits.
        logits = summary["exports"][name]["logits"]
        kl = [logits["all"]["kl"]] if "all" in logits else []
        expected = [sum(path.stat().st_size for path in files), models[evaluated]["perplexity"], *kl]
        assert marked.rows[f"artifact {name}"] == expected
    teacher = summary["plan"]["teacher"]["num_parameters"]
    assert marked.rows["artifact teacher"] == [2 * teacher, models["teacher"]["perplexity"]]
    steps = json.loads((out / "lineage.json").read_text())["steps"]
    for place, step in steps.items():
        assert marked.rows[f"lineage {place}"] == [step["num_parameters"]]


def test_the_pictures_show_the_plan(finished: tuple[Path, dict[str, Any]], marked: Marked) -> None:
    """Drawn areas against the units that the plan lists, and the layers against the student's config."""
    plan = json.loads((finished[0] / "stages/prune/prune_plan.json").read_text())
    config = json.loads((finished[0] / "student/config.json").read_text())
    expected = {
        "layers": (config["num_hidden_layers"], plan["source"]["num_hidden_layers"]),
        "intermediate": (config["intermediate_size"], plan["source"]["intermediate_size"]),
        "hidden": (config["hidden_size"], plan["source"]["hidden_size"]),
    }
    assert marked.removed == expected
    for axis, (kept, of) in expected.items():
        areas = marked.areas[axis]
        assert areas["kept"] / (areas["kept"] + areas["gone"]) == pytest.approx(kept / of, abs=0.01), axis


@pytest.fixture(scope="module")
def repaired(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of two cuts that repairs after each, after 2:4 sparsity and after FP8."""
    return run_below(
        tmp_path_factory.mktemp("repaired"),
        *(tiny_checkpoint, tiny_text),
        prune={"shape": {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}},
        interleave={"cuts": 2},
        distill={"tokens": 2 * 384, "batch_size": 4},
        sparsify={"pattern": "2:4", "tokens": 0},
        quantize={"fp8": True},
        repair={"fp8": True},
        export={"formats": ["huggingface"]},
    )


def test_the_repairs_are_what_their_stages_recorded(
    repaired: tuple[Path, dict[str, Any]], finished: tuple[Path, dict[str, Any]]
) -> None:
    out, summary = repaired
    names = ("cut-1-reconstruct", "reconstruct", "reconstruct-sparse", "reconstruct-fp8")
    records = [json.loads((out / f"stages/{name}/artifact.json").read_text())["details"] for name in names]
    text = (out / PAGE_FILE).read_text(encoding="utf-8")
    marked = Marked()
    marked.feed(text)
    card = (out / "README.md").read_text()
    shown = {key: row for key, row in marked.rows.items() if key.startswith("repair ")}
    assert list(shown) == [f"repair stages/{name}" for name in names]
    for name, record, row in zip(names, records, shown.values(), strict=True):
        accepted = sum(layer["accepted"] for layer in record["layers"].values())
        assert row == [accepted, len(record["layers"]) - accepted]
        line = f"- `stages/{name}`: {row[0]:.0f} linear layers fitted again, {row[1]:.0f} left as they were,"
        assert line in card
    assert any(row[0] > 0 for row in shown.values())
    counts = {"num_accepted": records[0]["num_accepted"], "num_left": records[0]["num_left"]}
    assert summary["cuts"][0]["repair"] == counts
    roles = ("reconstruct", "reconstruct_sparse", "reconstruct_fp8")
    for role, record in zip(roles, records[1:], strict=True):
        assert summary[role] == record
    assert "<h2>Repair</h2>" in text
    assert "<h2>Repair</h2>" not in (finished[0] / PAGE_FILE).read_text(encoding="utf-8")


def test_every_section_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for heading in ("What was removed", "Training", "Quality, size and speed", "Gates", "Results", "Lineage"):
        assert f"<h2>{heading}</h2>" in text
    for title in ("Held-out loss, and its forecast", "Training loss", "Quality against size"):
        assert f"<figcaption>{title}" in text
    assert text.count("<svg") == text.count("<figure")


def with_everything(summary: RunSummary) -> RunSummary:
    """The run with a benchmark by hand, and text of others that is HTML."""
    arms = tuple(arm_record(model, "0", "fp32") for model in ("teacher", "student"))
    bench = results_of([cell_of([2.0, 2.1, 1.9] * 2, [1.0, 1.1, 0.9] * 2)])
    assert summary.distill is not None
    return summary.model_copy(
        update={
            "bench": bench.model_copy(update={"arms": arms}),
            "warnings": (EVIL,),
            "versions": {EVIL: EVIL},
            "distill": summary.distill.model_copy(update={"loss": EVIL}),
        }
    )


def test_the_benchmark_is_on_it_and_names_are_text(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished[0], tmp_path / EVIL.replace("/", "")))
    summary = with_everything(read_summary(out))
    text = render_page(out, summary)
    assert "<img" not in text
    assert "a&lt;img src=q onerror=alert(1)&gt;" in text
    marked = Marked()
    marked.feed(text)
    perplexity = {name: found.perplexity for name, found in summary.evaluation.models.items()}
    [teacher] = [values for key, values in marked.rows.items() if key.startswith("speed teacher")]
    [student] = [values for key, values in marked.rows.items() if key.startswith("speed student")]
    assert [teacher[1], student[1]] == [perplexity["teacher"], perplexity["distilled"]]
    assert student[0] > teacher[0] > 0
    assert "<figcaption>Quality against speed" in text


def test_a_run_without_training_has_a_page_without_a_curve(finished: tuple[Path, dict[str, Any]]) -> None:
    summary = read_summary(finished[0])
    text = render_page(finished[0], summary.model_copy(update={"distill": None}))
    assert "<h2>Training</h2>" not in text
    assert "forecast" not in text.partition("<body>")[2]


def test_a_training_that_was_forecast_in_part_or_not_has_a_page_that_says_so(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    summary = read_summary(finished[0])

    def page_with(**changes: Any) -> str:
        assert summary.distill is not None
        assert summary.distill.forecast is not None
        found = summary.distill.forecast.model_copy(update={"reason": "so it is", **changes})
        distill = summary.distill.model_copy(update={"forecast": found})
        return render_page(finished[0], summary.model_copy(update={"distill": distill}))

    passed = page_with(at_end=None)
    assert 'data-row="quarter"' in passed
    assert 'data-row="twice"' not in passed
    assert "Held-out loss, and its forecast at a quarter" in passed
    measured = page_with(at_quarter=None, at_end=None)
    assert "No forecast: so it is." in measured
    assert "its forecast" not in measured


@needs_browser
@pytest.mark.parametrize("width", [DESKTOP, NARROWEST_WINDOW])
def test_the_page_complains_of_nothing_and_asks_for_nothing(page: Path, width: int) -> None:
    seen = visit(page, width=width)
    assert seen.console_errors == ()
    assert seen.requests == ()


@needs_browser
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_nothing_is_wider_than_the_screen(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, width: int
) -> None:
    text = render_page(finished[0], with_everything(read_summary(finished[0])))
    assert scroll_width(text, tmp_path, width=width) <= width


@needs_browser
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_is_drawn(page: Path, tmp_path: Path, width: int) -> None:
    image = screenshot(page, tmp_path / "page.png", width=width, height=2000)
    assert image.stat().st_size > 20_000
