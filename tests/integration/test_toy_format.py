"""A format that only this test knows, registered in one place: everything else learns of it from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file

from compressor.choices.formats import FORMATS, Format
from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import CheckpointReader
from compressor.models.sparse.record import SparsityRecord
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.recipe.recipe import Export, load_recipe
from exporters.protocol import Exporter
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import Verification
from tests.integration.command import command_here, succeed_here, write_recipe

FILE = "toy.safetensors"


class ToyExporter(Exporter):
    """Every tensor, negated."""

    def check(self, config: dict[str, object], export: Export, sparsity: SparsityRecord | None) -> None:
        if config.get("model_type") != "llama":
            raise UnsupportedError("toys are llamas", where="model_type", hint="leave toy out of the formats")

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        copy_tokenizer(source, out_dir)
        with CheckpointReader(source) as reader:
            save_file({name: -reader.tensor(name) for name in reader}, out_dir / FILE)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        tensors = load_file(out_dir / FILE)
        with CheckpointReader(student) as reader:
            for name in reader:
                if not torch.equal(-tensors[name], reader.tensor(name)):
                    raise VerificationError("a toy's tensor is not the student's", where=name)
        return self.verification({"num_equal_tensors": len(tensors)}, notes=("a toy",))

    def check_structure(self, directory: Path) -> Mapping[str, JsonValue]:
        return {"num_tensors": len(load_file(directory / FILE))}

    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        return len(sparsity.shapes)


TOY = Format(
    name="toy",
    help="Negated tensors, for tests",
    option="toy",
    precisions=("bf16",),
    code=f"{__name__}:ToyExporter",
    marker=FILE,
    default="always",
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, TOY.name, TOY)


def test_a_recipe_knows_what_the_table_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"model": "smollm2-135m", "export.formats": ["toy"]}
    with pytest.raises(UsageError, match="huggingface, "):
        load_recipe(None, named)
    monkeypatch.setitem(FORMATS, TOY.name, TOY)
    assert load_recipe(None, named).export_formats() == ("toy",)
    assert "toy" in load_recipe(None, {"model": "smollm2-135m"}).export_formats()


def test_help_shows_it_and_export_writes_it(toy: None, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert f"toy {TOY.help}" in " ".join(command_here("run", "--help").stdout.split())
    assert "toy bf16" in " ".join(command_here("export", "--help").stdout.split())
    made = succeed_here("export", tiny_checkpoint, "--format", "toy", "-o", tmp_path / "made")
    assert made["details"]["checks"] == {"num_equal_tensors": 29}


def test_what_a_format_needs_is_asked_for_before_any_work(
    toy: None, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ["--shape", "num_hidden_layers=2", "--formats", "toy", "--tokens", "0"]
    plan = succeed_here("plan", tiny_checkpoint, *size)
    assert plan["exports"] == ["toy"]
    for needs, code, said in (
        ({"requires": ("no-such-library",)}, 4, "format toy needs a library"),
        ({"needs_fp8": True}, 2, "toy needs FP8 quantization"),
    ):
        monkeypatch.setitem(FORMATS, "toy", replace(TOY, **needs))  # type: ignore[arg-type]
        done = command_here("run", tiny_checkpoint, *size, "--calib-data", tiny_text, "-o", tmp_path / "out")
        assert done.returncode == code
        assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_writes_verifies_and_reports_it(
    toy: None, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        distill={"tokens": 0},
        export={"formats": ["huggingface", "toy"]},
    )
    out_dir = tmp_path / "out"
    summary = succeed_here("run", "--config", recipe, "-o", out_dir)
    assert summary["exports"]["toy"]["checks"]["num_equal_tensors"] > 10
    assert "| toy |" in (out_dir / "README.md").read_text()
    checked = {Path(entry["path"]).name: entry for entry in succeed_here("verify", out_dir)["checked"]}
    assert (checked["toy"]["format"], checked["student"]["status"]) == ("toy", "bit-equal")
    assert checked["toy"]["contents"] == "compared with its source"

    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / FILE).write_bytes((out_dir / "exports" / "toy" / FILE).read_bytes())
    assert succeed_here("verify", other)["checked"][0]["kind"] == "checkpoint"

    file = out_dir / "exports" / "toy" / FILE
    tensors = load_file(file)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] + 1}, file)
    assert command_here("verify", out_dir).returncode == 8
