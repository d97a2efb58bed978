"""A run that measures its exports as they compute: the record, the card, the page, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from compressor.data.packing import read_windows
from compressor.models.tokenizer import load_tokenizer
from compressor.pipeline.page.artifacts import speeds_of
from compressor.pipeline.summary import PAGE_FILE, read_summary
from tests.integration.command import command_here, succeed_here, write_recipe
from tests.unit.bench.results_by_hand import arm_record, cell_of, results_of

WINDOW, SIZE = 32, 3
OPTIONS: dict[str, Any] = {
    "repair": {"method": "off"},
    "distill": {"tokens": 0},
    "export": {"formats": ["huggingface", "onnx-int4"]},
    "evaluate": {"seq_len": WINDOW, "size": SIZE, "exports": True},
}


@pytest.fixture(scope="module")
def finished(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(root / "recipe.yaml", tiny_checkpoint, tiny_text, **OPTIONS)
    return root / "out", succeed_here("run", "--config", recipe, "-o", root / "out")


def perplexity_by_hand(graph: Path, text: Path) -> float:
    """Of a graph in a session of its own, on the text's held-out part, summed in float64."""
    session = onnxruntime.InferenceSession(graph / "model.onnx", providers=["CPUExecutionProvider"])
    cache = {
        entry.name: torch.zeros(1, entry.shape[1], 0, 16).numpy()
        for entry in session.get_inputs()
        if entry.name.startswith("past")
    }
    windows = read_windows(str(text), "held_out", load_tokenizer(graph), size=SIZE, seq_len=WINDOW)
    total = 0.0
    for window in windows.astype("int64"):
        mask = torch.ones(1, WINDOW, dtype=torch.int64).numpy()
        feed = {"input_ids": window[None], "attention_mask": mask, **cache}
        logits = torch.from_numpy(session.run(["logits"], feed)[0][0, :-1]).double()
        total -= logits.log_softmax(-1).gather(-1, torch.from_numpy(window[1:, None])).sum().item()
    return math.exp(total / (SIZE * (WINDOW - 1)))


def test_the_graph_is_measured_beside_the_student(
    finished: tuple[Path, dict[str, Any]], tiny_text: Path
) -> None:
    out, summary = finished
    record = summary["evaluated_exports"]
    assert set(record["models"]) == {"student", "onnx-int4"}
    found = record["models"]["onnx-int4"]
    assert found["perplexity"] == pytest.approx(perplexity_by_hand(out / "exports" / "onnx-int4", tiny_text))
    assert found["executed"]["precision"] == "int4"
    assert found["agreement"]["kl"] > 0
    assert record["text"] == summary["evaluation"]["text"]
    assert record["models"]["student"]["mean_nll"] == summary["evaluation"]["models"]["pruned"]["mean_nll"]


def test_card_and_page_show_it_and_verify_checks_it(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    perplexity = summary["evaluated_exports"]["models"]["onnx-int4"]["perplexity"]
    card, page = ((out / name).read_text(encoding="utf-8") for name in ("README.md", PAGE_FILE))
    assert "## Exports as they compute" in card
    assert f"{perplexity:.3f}" in card
    assert f'data-value="{perplexity}"' in page
    checked = [Path(entry["path"]).name for entry in succeed_here("verify", out)["checked"]]
    assert "evaluate-exports" in checked


def test_the_speed_of_a_graph_stands_beside_its_own_perplexity(finished: tuple[Path, dict[str, Any]]) -> None:
    out, found = finished
    arms = tuple(
        arm_record(model, "0").model_copy(update={"precision": "int4"}) for model in ("teacher", "student")
    )
    bench = results_of([cell_of([2.0, 2.1, 1.9] * 2, [1.0, 1.1, 0.9] * 2)]).model_copy(update={"arms": arms})
    speeds = speeds_of(read_summary(out).model_copy(update={"bench": bench}))
    perplexity = found["evaluated_exports"]["models"]["onnx-int4"]["perplexity"]
    assert {one.arm: one.perplexity for one in speeds} == {"teacher-fp32": None, "student-fp32": perplexity}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"export": {"formats": ["huggingface", "tensorrt-llm"]}}, "none of the exports can be evaluated"),
        ({"evaluate": {"seq_len": 4096, "size": 1, "exports": True}}, "longer than an export's graph"),
    ],
)
def test_what_could_not_be_measured_is_refused_before_any_stage(
    sections: dict[str, Any], message: str, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_checkpoint, tiny_text, **{**OPTIONS, **sections})
    done = command_here("run", "--config", recipe, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not list((tmp_path / "out").glob("stages/*/artifact.json"))
