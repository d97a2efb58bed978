"""`bench` from the command line to its files, on a published alias cut to two layers, random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from bench.report.results import PeakMemory, Results, Roofline
from compressor.cli.main import invoke
from compressor.models.presets import PRESETS

TEACHER = "smollm2-135m:num_hidden_layers=2+vocab_size=512"
STUDENT = "smollm2-135m:num_hidden_layers=1+vocab_size=512"
GRID = ("--runtime", "torch", "--isl-osl", "8/4", "--batch-size", "1:2")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take a hundred times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("bench") / "out"
    words = ("bench", "--random-weights", TEACHER, STUDENT, *GRID, "--precision", "fp32,bf16")
    assert invoke([*words, "-o", str(out)]) == 0
    assert {"report.html", "report.md", "results.csv", "results.json"} <= {
        file.name for file in out.iterdir()
    }
    return Results.model_validate_json((out / "results.json").read_text())


def test_pruning_precision_and_the_total_are_each_measured(results: Results) -> None:
    pairs = [(comparison.baseline[-4:], comparison.candidate[-4:]) for comparison in results.comparisons]
    assert pairs == [
        ("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16"), ("fp32", "bf16"), ("fp32", "bf16"),
    ]  # fmt: skip
    assert all(arm.has_random_weights for arm in results.arms)
    assert all(isinstance(arm.peak_memory, PeakMemory) for arm in results.arms)


def test_a_batch_size_per_model_is_both_sizes_for_one_model(results: Results) -> None:
    labels = [[cell.label for cell in comparison.cells] for comparison in results.comparisons]
    own, both = ["8/4 x 1:2"], ["8/4 x 1", "8/4 x 2"]
    assert labels == [own, own, both, both, own]


def test_every_measured_cell_has_a_roofline(results: Results) -> None:
    cells = [cell for comparison in results.comparisons for cell in comparison.cells]
    assert all(isinstance(cell.roofline, Roofline) for cell in cells)
    assert results.rates is not None


def test_the_same_command_again_is_skipped_and_its_document_is_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "--random-weights", TEACHER, STUDENT, *GRID, "-o", str(tmp_path / "out"), "--json"]
    assert invoke(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert invoke(words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first


def test_published_shapes_are_named_alone_and_everything_else_has_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three names as they are, each made tiny; only the grid is given, to be quick."""
    monkeypatch.chdir(tmp_path)
    for name, num_hidden_layers in (("llama3.1-8b", 2), ("4b-width", 1), ("4b-depth", 1)):
        tiny = PRESETS["smollm2-135m"].dims.with_shape(num_hidden_layers=num_hidden_layers, vocab_size=512)
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], dims=tiny))
    words = ("bench", "--random-weights", "llama3.1-8b", "4b-width", "4b-depth")
    assert invoke([*words, "--isl-osl", "8/2", "--batch-size", "1"]) == 0
    found = Results.model_validate_json((tmp_path / "bench-llama3.1-8b" / "results.json").read_text())
    assert [arm.id for arm in found.arms] == ["llama3.1-8b-bf16", "4b-width-bf16", "4b-depth-bf16"]
    assert [arm.runtime for arm in found.arms] == ["torch"] * 3
    assert [len(comparison.cells) for comparison in found.comparisons] == [1, 1]


def test_graphs_of_random_weights_are_built_once_and_of_a_layer_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ("smollm2-135m:layer", "smollm2-135m:hidden_size=288+layer")
    words = ["bench", "--random-weights", *models, "--runtime", "onnxruntime", "--json"]
    words += ["--isl-osl", "8/4", "--batch-size", "1", "--max-pairs", "5"]
    assert invoke([*words, "-o", str(tmp_path / "out")]) == 0
    found = Results.model_validate_json(capsys.readouterr().out)
    assert [(arm.precision, arm.has_random_weights) for arm in found.arms] == [("fp32", True)] * 2
    assert [arm.num_parameters for arm in found.arms] == [3_688_128, 1_844_064]
    graphs = sorted((tmp_path / ".compress-export" / "shapes").glob("*onnx*/model.onnx"))
    caches = [
        [entry.name for entry in onnx.load(file, load_external_data=False).graph.input] for file in graphs
    ]
    assert [[name for name in names if name.endswith(".key")] for names in caches] == [
        ["past_key_values.0.key"]
    ] * 2
    before = [file.stat().st_mtime_ns for file in graphs]
    assert invoke([*words, "-o", str(tmp_path / "again")]) == 0
    assert [file.stat().st_mtime_ns for file in graphs] == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--random-weights", TEACHER, STUDENT, "--runtime", "tensorrt-llm"], 2),
        (["--random-weights", "smollm2-135m:layers=2", STUDENT, *GRID], 2),
        (["--random-weights", TEACHER, STUDENT, *GRID, "--precision", "fp9"], 3),
        (["--random-weights", TEACHER], 2),
        (["--random-weights", TEACHER, STUDENT, "--preset", "quick", "--batch-size", "4"], 2),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], code: int, tmp_path: Path) -> None:
    assert invoke(["bench", *words, "-o", str(tmp_path / "out")]) == code
