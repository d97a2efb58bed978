"""The preflight of a run: it finds what would end the run, leaves its record alone, and is not repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from compressor.choices.formats import FORMATS, Format
from compressor.core.errors import UnsupportedError
from compressor.models.checkpoint import read_config
from compressor.models.sparse.record import SparsityRecord
from compressor.pipeline import slice_run
from compressor.recipe.recipe import Export
from exporters.protocol import Exporter
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import Verification
from tests.integration.command import command_here, succeed_here, write_recipe

PLACE = "in the preflight on a slice of 2 layers of the model"


class FailingExporter(Exporter):
    """Fails as a runtime's writer does: only when it writes, with nothing to see before."""

    def check(self, config: dict[str, object], export: Export, sparsity: SparsityRecord | None) -> None:
        pass

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        raise UnsupportedError("the runtime has no kernel for this head", where=f"{out_dir}/graph", found=16)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        raise AssertionError("nothing was written")

    def check_structure(self, directory: Path) -> dict[str, JsonValue]:
        raise AssertionError("nothing was written")

    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        raise AssertionError("nothing was written")


class CrashingExporter(FailingExporter):
    """Ends with an error that nobody expected."""

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        raise RuntimeError(f"{read_config(source)['num_hidden_layers']} layers")


@pytest.fixture
def recipe(tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path) -> Path:
    return write_recipe(
        tmp_path / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        preflight="on",
        export={"formats": ["huggingface"]},
        distill={"tokens": 256},
    )


def plant(monkeypatch: pytest.MonkeyPatch, exporter: str) -> None:
    failing = Format(
        name="failing",
        help="Fails, for tests",
        option="failing",
        precisions=("bf16",),
        code=f"{__name__}:{exporter}",
        marker="failing",
    )
    monkeypatch.setitem(FORMATS, "failing", failing)


def record(out_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out_dir / "manifest.json").read_text())
    return found


def test_a_failing_exporter_is_found_before_the_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "FailingExporter")
    out_dir = tmp_path / "out"
    done = command_here("run", "--config", recipe, "--formats", "huggingface,failing", "-o", out_dir)
    assert done.returncode == UnsupportedError.exit_code
    assert "the runtime has no kernel for this head" in done.stderr
    assert f"where: exports/failing, {PLACE}" in done.stderr
    assert "found: 16" in done.stderr

    # Nothing of the run was written but the preflight's record.
    assert {path.name for path in out_dir.iterdir()} <= {"manifest.json", ".lock"}
    kept = record(out_dir)
    assert kept["stages"] == {}
    assert "no kernel" in kept["preflight"]["error"]
    assert set(kept["preflight"]["stages"]) == {
        "stages/prune",
        "stages/reconstruct",
        "stages/distill",
        "student",
    }


def test_an_unexpected_error_is_placed_too(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slice has two layers, of which the student keeps one less than the run's does."""
    plant(monkeypatch, "CrashingExporter")
    out_dir = tmp_path / "out"
    done = command_here("run", "--config", recipe, "--formats", "huggingface,failing", "-o", out_dir)
    assert done.returncode == 1
    assert f"exports/failing, {PLACE}: RuntimeError" in done.stderr
    assert record(out_dir)["preflight"]["error"] == "1 layers"
    assert not (out_dir / "preflight").exists()


def test_one_that_passed_is_recorded_and_not_repeated(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir = tmp_path / "out"
    summary = succeed_here("run", "--config", recipe, "-o", out_dir)
    made = summary["preflight"]
    assert set(made["stages"]) == {*summary["stages"]}
    assert (made["num_layers"], made["error"], made["left_out"]) == (2, None, [])
    assert summary["plan"]["preflight"]["num_layers"] == [2, 1]
    assert f"on {made['num_layers']} layers of the model" in (out_dir / "README.md").read_text()

    (out_dir / "preflight").mkdir()  # of one that was killed
    monkeypatch.setattr(slice_run, "_try", lambda *_arguments, **_named: pytest.fail("it was repeated"))
    again = succeed_here("run", "--config", recipe, "-o", out_dir)
    assert again["preflight"] == made
    assert not (out_dir / "preflight").exists()
    assert succeed_here("verify", out_dir)["checked"]
