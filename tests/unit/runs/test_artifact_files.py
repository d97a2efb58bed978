"""What is recorded of a stage's files, and which changes of them are found."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compressor.core.errors import VerificationError
from compressor.runs.artifact import Files, check_files, record_files, write_json, write_text

Put = Callable[[Path, Path], object]
Damage = Callable[[Path], object]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    directory = tmp_path / "made"
    (directory / "checkpoint").mkdir(parents=True)
    save_file({"a": torch.ones(3, 5), "b": torch.zeros(7)}, directory / "model.safetensors")
    (directory / "checkpoint" / "rank0.bin").write_bytes(b"weights")
    (directory / "config.json").write_text("{}")
    (directory / "empty").touch()
    return directory


def test_every_file_is_recorded_but_the_records(made: Path) -> None:
    for name in ("artifact.json", "stage.json", "config.json.tmp"):
        (made / name).write_text("{}")

    files = record_files(made)

    assert sorted(files) == ["checkpoint/rank0.bin", "config.json", "empty", "model.safetensors"]
    for name, record in files.items():
        data = (made / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    check_files(made, files, contents=True)


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.yaml.tmp"])
@pytest.mark.parametrize("put", [lambda path, other: path.symlink_to(other), lambda path, _: os.mkfifo(path)])
@pytest.mark.timeout(20)
def test_what_is_written_replaces_a_link_or_fifo(tmp_path: Path, name: str, put: Put) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "made").mkdir()
    put(tmp_path / "made" / name, tmp_path / "other")

    for write, value in ((write_text, "a: é\n"), (write_json, {"a": "é"})):
        write(tmp_path / "made" / "recipe.yaml", value)
    assert (tmp_path / "other").read_text() == "precious"
    assert json.loads((tmp_path / "made" / "recipe.yaml").read_text()) == {"a": "é"}
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["recipe.yaml"]


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def header(path: Path, tensors: dict[str, object]) -> None:
    """Another header in a file of the same size."""
    size = path.stat().st_size
    encoded = json.dumps(tensors).encode()
    path.write_bytes((struct.pack("<Q", len(encoded)) + encoded).ljust(size, b"\0")[:size])


SIZES: dict[str, tuple[str, Damage]] = {
    "deleted": ("config.json", Path.unlink),
    "deleted below": ("checkpoint/rank0.bin", Path.unlink),
    "truncated": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "emptied": ("checkpoint/rank0.bin", lambda path: path.write_bytes(b"")),
    "appended": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    "no longer empty": ("empty", lambda path: path.write_bytes(b"1")),
    "added": ("masks.safetensors", Path.touch),
    "added below": ("checkpoint/rank1.bin", Path.touch),
    "header of zeros": (
        "model.safetensors",
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ),
    "header's length": ("model.safetensors", lambda path: flip(path, 6)),
    "header no JSON": ("model.safetensors", lambda path: flip(path, 8)),
    "header of overlapping tensors": (
        "model.safetensors",
        lambda path: header(path, {"a": {"data_offsets": [0, 60]}, "b": {"data_offsets": [0, 28]}}),
    ),
}
CONTENTS: dict[str, tuple[str, Damage]] = {
    "a bit of a weight": ("model.safetensors", lambda path: flip(path, -1)),
    "a letter of a config": ("config.json", lambda path: path.write_text("[]")),
    "a byte below": ("checkpoint/rank0.bin", lambda path: flip(path, 0)),
}


@pytest.mark.parametrize("how", [*SIZES, *CONTENTS])
def test_a_change_is_found_and_named(made: Path, how: str) -> None:
    files: Files = record_files(made)
    name, damage = (SIZES | CONTENTS)[how]
    damage(made / name)

    if how in CONTENTS:
        check_files(made, files, contents=False)  # sizes and headers show nothing
    with pytest.raises(VerificationError) as caught:
        check_files(made, files, contents=how in CONTENTS, redo="--restart-from prune")
    assert caught.value.where == str(made / name)
    added = how.startswith("added")
    assert caught.value.hint == (f"remove {made / name}" if added else "make it again: --restart-from prune")


@pytest.mark.parametrize("name", [".DS_Store", "checkpoint/._rank0.bin", ".nfs000000012c", "Thumbs.db"])
def test_what_a_file_system_leaves_is_no_change(made: Path, name: str) -> None:
    files = record_files(made)
    (made / name).touch()

    check_files(made, files, contents=True)
    assert record_files(made) == files


@pytest.mark.parametrize("name", ["additional_chat_templates", "checkpoint/more", "engine"])
@pytest.mark.parametrize("kind", ["full", "empty", "dangling", "loop", "fifo"])
def test_an_added_link_or_fifo_is_found_and_named(made: Path, tmp_path: Path, name: str, kind: str) -> None:
    files, elsewhere = record_files(made), tmp_path / "elsewhere"
    if kind in ("full", "empty"):
        elsewhere.mkdir()
    if kind == "full":
        (elsewhere / "tool_use.jinja").write_text("x")
    if kind == "fifo":
        os.mkfifo(made / name)
    else:
        (made / name).symlink_to(made if kind == "loop" else elsewhere)

    with pytest.raises(VerificationError, match="an entry was added") as caught:
        check_files(made, files, contents=True)
    assert caught.value.where == str(made / name)
    assert caught.value.hint == f"remove {made / name}"
    assert record_files(made) == files


@pytest.mark.parametrize("name", ["tensorboard", "engine"])
def test_logs_and_engines_may_be_kept_elsewhere(made: Path, tmp_path: Path, name: str) -> None:
    files = record_files(made)
    (tmp_path / "elsewhere").mkdir()
    (made / name).symlink_to(tmp_path / "elsewhere")

    check_files(made, files, contents=True, stage="export-tensorrt-llm")


def test_an_engine_may_be_built_later(made: Path) -> None:
    files = record_files(made)
    (made / "engine").mkdir()
    (made / "engine" / "rank0.engine").touch()
    (made / "timing.cache").touch()

    check_files(made, files, contents=True, stage="export-tensorrt-llm-fp8")
    built = record_files(made)
    (made / "engine" / "rank0.engine").unlink()
    with pytest.raises(VerificationError, match=r"rank0\.engine"):
        check_files(made, built, contents=True)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("prune", "timing.cache"),
        ("export-onnx", "engine"),
        ("export-tensorrt-llm-fp8", "timing.cache-anything"),
        ("export-tensorrt-llm", "engine.bin"),
    ],
)
def test_other_files_beside_an_export_are_refused(made: Path, stage: str, name: str) -> None:
    files = record_files(made)
    (made / name).touch()
    with pytest.raises(VerificationError, match="was added"):
        check_files(made, files, contents=False, stage=stage)
