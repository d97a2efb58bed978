"""What stands between a directory of ours, or a converted file, and the command that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressor.cli import main as command_line
from compressor.core.errors import ResourceError, VerificationError
from compressor.core.hardware import usable_memory_bytes
from compressor.core.lazy import resolve
from compressor.distillation.training import require_training_memory
from compressor.models.source import open_checkpoint, resolve_source
from compressor.recipe.recipe import Distill
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, record_files
from tests.gguf_files import TinyGguf
from tests.tiny_models import make_model, save_checkpoint

ALTERATIONS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
    "config.json": lambda path: path.write_text(path.read_text() + "\n"),
    "tokenizer.json": Path.unlink,
    "masks.safetensors": Path.touch,
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_conversion_is_refused_and_converted_again(name: str, tmp_path: Path) -> None:
    source = resolve_source(str(TinyGguf().write(tmp_path / "tiny.gguf")))
    made = open_checkpoint(source, tmp_path / "scratch", dtype="float32")
    assert open_checkpoint(source, tmp_path / "scratch", dtype="float32") == made
    ALTERATIONS[name](made.path / name)

    with pytest.raises(VerificationError) as caught:
        open_checkpoint(source, tmp_path / "scratch", dtype="float32")
    assert name in str(caught.value.where)
    assert str(made.path) in str(caught.value.hint)
    (made.path / ARTIFACT_FILE).unlink()  # what a conversion without its record is: unfinished
    again = open_checkpoint(source, tmp_path / "scratch", dtype="float32")
    assert again.fingerprint == made.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_an_altered_stage_directory_is_refused(name: str, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "pruned", make_model())
    artifact = ModelArtifact(
        path=path, stage="prune", fingerprint="f", lineage=("source", "prune"), num_parameters=1
    )
    replace(artifact, files=record_files(path)).write()
    source = resolve_source(str(path))
    assert open_checkpoint(source, tmp_path, dtype="float32").lineage == ("source", "prune")
    ALTERATIONS[name](path / name)

    with pytest.raises(VerificationError, match="prune command with --overwrite") as caught:
        open_checkpoint(source, tmp_path, dtype="float32")
    assert name in str(caught.value.where)


def test_only_what_certainly_does_not_fit_is_refused(tmp_path: Path) -> None:
    def trained(num_parameters: int) -> ModelArtifact:
        return ModelArtifact(
            path=tmp_path, stage="prune", fingerprint="f", lineage=(), num_parameters=num_parameters
        )

    most = usable_memory_bytes() // 16
    require_training_memory([trained(most)], Distill(), "cpu")
    for models in ([trained(most + 1)], [trained(most), trained(1)]):
        with pytest.raises(ResourceError, match="do not fit"):
            require_training_memory(models, Distill(), "cpu")


def test_a_file_that_ends_early_is_no_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "optimizer.pt").touch()

    def read(**_flags: object) -> None:
        torch.load(tmp_path / "optimizer.pt", weights_only=True)

    monkeypatch.setattr(resolve(command_line.COMMANDS["doctor"][0]), "callback", read)
    assert command_line.invoke(["doctor"]) != command_line.INTERRUPTED_EXIT_CODE
    assert "interrupted" not in capsys.readouterr().err
