"""A runtime is one row and its module: two that a test registers work from the help to the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.report.results import Interval
from bench.report.write import read_results
from compressor.choices.runtimes import RUNTIMES, Runtime
from compressor.cli.main import invoke
from compressor.core.errors import UsageError
from compressor.models.source import open_checkpoint, resolve_source
from compressor.pipeline.measured import arms_of
from compressor.recipe.recipe import Recipe, load_recipe
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.bench.toy_runtimes import SERVER, STATIC


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (STATIC, SERVER):
        monkeypatch.setitem(RUNTIMES, row.name, row)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A teacher of four layers and a student of two."""
    root = tmp_path_factory.mktemp("toys")
    return [
        str(save_checkpoint(root / name, make_model(num_hidden_layers=num_layers)))
        for name, num_layers in (("teacher", 4), ("student", 2))
    ]


def recipe_with(runtime: str, **fields: object) -> Recipe:
    bench = {f"bench.{name}": value for name, value in fields.items()}
    return load_recipe(None, {"model": "llama3.1-8b", "bench.runtime": runtime, **bench})


def words(models: list[str], row: Runtime, out: Path, *options: str) -> list[str]:
    return ["bench", *models, "--runtime", row.name, "--isl-osl", "6/4", *options, "-o", str(out)]


@pytest.mark.parametrize("command", ["bench", "run"])
def test_they_are_in_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([command, "--help"] if command == "run" else [command, "run", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for row in (STATIC, SERVER):
        assert row.name in shown
        assert row.help in shown


def test_a_recipe_may_name_them_and_no_others() -> None:
    assert recipe_with(SERVER.name).bench.row is SERVER
    with pytest.raises(UsageError, match="toy-batches, toy-server"):
        recipe_with("toy-bathces")
    with pytest.raises(UsageError, match="half, quarter"):
        recipe_with(STATIC.name, precisions=("fifth",))


@pytest.mark.parametrize(("row", "precision"), [(STATIC, "quarter"), (SERVER, "half")])
def test_a_run_measures_its_checkpoints_with_them(row: Runtime, precision: str, models: list[str]) -> None:
    teacher, student = (open_checkpoint(resolve_source(model), Path(), dtype="bfloat16") for model in models)
    run: Any = SimpleNamespace(
        recipe=recipe_with(row.name, precisions=("quarter", "half")[: 1 + row.serves]),
        teacher=teacher,
        made={"pruned": student},
    )
    assert run.recipe.measured_formats() == {}
    measured = arms_of(run)
    assert measured.artifacts == {f"teacher-{precision}": teacher, f"student-{precision}": student}
    assert measured.engines == {}


def test_a_static_runtime_measures_batches_into_the_reports(models: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke(words(models, STATIC, out, "--batch-size", "2", "--precision", "half,quarter")) == 0
    results = read_results(out / "results.json")
    assert {arm.runtime for arm in results.arms} == {"toy-batches"}
    speedups = [cell.speedup for compared in results.comparisons for cell in compared.cells]
    assert [speedup and round(speedup.ratio, 9) for speedup in speedups] == [2.0, 2.0, 2.0, 2.0, 4.0]
    assert "toy-batches" in (out / "report.md").read_text()


def test_a_serving_runtime_measures_requests_into_the_reports(models: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke(words(models, SERVER, out, "--concurrency", "3", "--num-requests", "5")) == 0
    results = read_results(out / "results.json")
    (cell,) = results.comparisons[0].cells
    assert (results.protocol.mode, cell.batch_size) == ("concurrency", 3)
    assert isinstance(cell.speedup, Interval)
    assert cell.speedup.ratio == pytest.approx(0.5)
    assert "starts the server (toy-server) anew" in (out / "report.md").read_text()


def test_what_a_runtime_lacks_is_refused_before_a_model_is_read(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(words(models, STATIC, tmp_path / "out", "--precision", "half,fifth")) == 3
    assert "the toy has no fifth" in capsys.readouterr().err
    lacking = replace(SERVER, executable="no-such-server", install="build the toy first")
    monkeypatch.setitem(RUNTIMES, SERVER.name, lacking)
    assert invoke(words(models, SERVER, tmp_path / "out")) == 4
    assert "build the toy first" in capsys.readouterr().err
