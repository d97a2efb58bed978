"""One rule for links, in whatever reads a model directory and in whatever copies from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.choices.formats import FORMATS
from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.files import check_files
from compressor.models.load import copy_checkpoint
from compressor.models.source import open_checkpoint, resolve_source
from compressor.models.tokenizer_files import copy_tokenizer, tokenizer_digest

Make = Callable[[Path, Path], Path]


def snapshot(plain: Path, tmp_path: Path) -> Path:
    """As the hub's library lays a model out: blobs by their hash, and links to them by name."""
    repository = tmp_path / "cache" / "hub" / "models--someone--model"
    directory = repository / "snapshots" / "0123abcd"
    directory.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in plain.rglob("*") if path.is_file())):
        blob, link = repository / "blobs" / f"{number:040x}", directory / file.relative_to(plain)
        shutil.copyfile(file, blob)
        link.parent.mkdir(exist_ok=True)
        depth = len(link.relative_to(repository).parts) - 1
        link.symlink_to(Path(*[".."] * depth, "blobs", blob.name))
    (directory / "again.json").symlink_to("config.json")
    return directory


def linked_snapshot(plain: Path, tmp_path: Path) -> Path:
    """A link to a snapshot."""
    link = tmp_path / "linked"
    link.symlink_to(snapshot(plain, tmp_path))
    return link


def links_into_the_cache(plain: Path, tmp_path: Path) -> Path:
    """A directory that the hub's library filled with links to its blobs."""
    cached, directory = snapshot(plain, tmp_path), tmp_path / "local"
    for file in cached.rglob("*"):
        if file.is_file():
            link = directory / file.relative_to(cached)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return directory


@pytest.fixture
def plain(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path / "plain"))
    (directory / "additional_chat_templates").mkdir()
    for name in ("LICENSE", "chat_template.jinja", "additional_chat_templates/rag.jinja"):
        (directory / name).write_text(name)
    return directory


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [snapshot, linked_snapshot, links_into_the_cache])
def test_what_may_be_read_may_be_copied(make: Make, plain: Path, tmp_path: Path) -> None:
    directory, out, expected = make(plain, tmp_path), tmp_path / "out", tmp_path / "expected"
    out.mkdir()
    expected.mkdir()
    opened = open_checkpoint(resolve_source(str(directory)), tmp_path / "scratch", dtype="float32")
    copy_checkpoint(opened.path, out)
    copy_checkpoint(plain, expected)

    assert names(out) == names(expected) >= {"LICENSE", "additional_chat_templates/rag.jinja"}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    for name in names(expected):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    assert tokenizer_digest(directory) == tokenizer_digest(plain)


@pytest.mark.parametrize(
    "place",
    [
        "secret",
        "blobs/0",
        "cache/hub/models--someone--model/refs/main",
        "cache/hub/models--someone--model/blobs/deeper/0",
        "cache/hub/datasets--someone--texts/blobs/0",
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "LICENSE"])
@pytest.mark.parametrize("make", [snapshot, links_into_the_cache])
def test_what_may_not_be_read_may_not_be_copied(
    make: Make, name: str, place: str, plain: Path, tmp_path: Path
) -> None:
    directory, out, target = make(plain, tmp_path), tmp_path / "out", tmp_path / place
    out.mkdir()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{}")
    (directory / name).unlink()
    (directory / name).symlink_to(target)

    works = [lambda: copy_tokenizer(directory, out)]
    if name != "LICENSE":  # is never opened
        works.append(lambda: check_files(directory))
    for work in works:
        with pytest.raises(VerificationError, match="leaves") as caught:
            work()
        assert caught.value.where == str(directory / name)


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("huggingface")])
def test_an_export_is_refused_before_any_model_is_opened(name: str, tmp_path: Path) -> None:
    marker = tmp_path / FORMATS[name].marker
    marker.parent.mkdir(exist_ok=True)
    marker.write_text("{}")
    with pytest.raises(UnsupportedError, match="export for a runtime") as caught:
        resolve_source(str(tmp_path))
    assert f"--format {FORMATS[name].option}" in str(caught.value.found)
    assert "name the model that was exported" in str(caught.value.hint)


def test_a_graph_beside_a_checkpoint_makes_it_no_export(plain: Path) -> None:
    (plain / "model.onnx").touch()
    assert resolve_source(str(plain)).kind == "directory"
