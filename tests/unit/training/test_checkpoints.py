"""Checkpoints that are damaged in every way are named, and the older one is taken."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compressor.core.console import Console
from compressor.core.errors import VerificationError
from compressor.training.checkpoints import COMPLETE_MARK, last_complete_checkpoint
from compressor.training.sharded_state import load_state_, save_state
from compressor.training.trainer import train
from tests.short_training import full_state, make_config
from tests.unit.training.test_trainer import make_data, make_module

Damage = Callable[[Path], object]
Trained = tuple[Path, dict[str, torch.Tensor]]
FILES = ("__0_0.distcp", ".metadata", "rng_state.pth", "progress.json", "trainer_state.json", COMPLETE_MARK)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "garbage": lambda path: path.write_bytes(b"\x80" * path.stat().st_size),
    "flipped": flip,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training of six steps with its two newest checkpoints, and what it ended in."""
    root, module = tmp_path_factory.mktemp("trained"), make_module()
    train(module, make_data(root), make_config(), root, Console())
    return root, full_state(module.student)


def damaged_copy(trained: Path, tmp_path: Path, names: tuple[str, ...], file: str, how: str) -> Path:
    root = Path(shutil.copytree(trained, tmp_path / "work"))
    for name in names:
        DAMAGES[how](root / "checkpoints" / name / file)
    return root


def test_two_complete_checkpoints_are_kept(trained: Trained) -> None:
    checkpoints = trained[0] / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    assert set(FILES) <= {path.name for path in (checkpoints / "checkpoint-6").iterdir()}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_and_the_older_checkpoint_taken(
    trained: Trained, tmp_path: Path, file: str, how: str
) -> None:
    root = damaged_copy(trained[0], tmp_path, ("checkpoint-6",), file, how)
    console = Console()

    assert last_complete_checkpoint(root / "checkpoints", console) == root / "checkpoints" / "checkpoint-4"
    assert len(console.warnings) == 1
    assert "checkpoint-6" in console.warnings[0]
    if (file, how) != (COMPLETE_MARK, "missing"):  # this is what a killed save leaves
        assert file in console.warnings[0]
    assert not (root / "checkpoints" / "checkpoint-6").exists()


@pytest.mark.parametrize("file", ["__0_0.distcp", "rng_state.pth"])
def test_training_goes_on_from_the_older_one_to_the_same_end(
    trained: Trained, tmp_path: Path, file: str
) -> None:
    root, module = damaged_copy(trained[0], tmp_path, ("checkpoint-6",), file, "empty"), make_module()
    train(module, make_data(root), make_config(), root, Console())

    torch.testing.assert_close(full_state(module.student), trained[1], rtol=0, atol=0)


@pytest.mark.parametrize("how", ["empty", "flipped"])
def test_all_damaged_is_one_error_with_the_command(trained: Trained, tmp_path: Path, how: str) -> None:
    names = ("checkpoint-4", "checkpoint-6")
    root = damaged_copy(trained[0], tmp_path, names, "__0_0.distcp", how)

    with pytest.raises(VerificationError, match="every checkpoint") as caught:
        train(make_module(), make_data(root), make_config(), root, Console())
    assert caught.value.where == str(root / "checkpoints" / "checkpoint-6" / "__0_0.distcp")
    assert "--restart-from" in str(caught.value.hint)
    assert "--overwrite" in str(caught.value.hint)


def test_checkpoints_are_found_by_their_number(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-4").mkdir()
    console = Console()

    assert last_complete_checkpoint(tmp_path, console) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-best"]
    assert len(console.warnings) == 1


def test_a_checkpoint_of_another_training_is_an_error_with_a_hint(
    trained: Trained,
) -> None:
    checkpoint = trained[0] / "checkpoints" / "checkpoint-6"
    for named in ({"other": torch.zeros(1)}, {"student.model.norm.weight": torch.zeros(1)}):
        with pytest.raises(VerificationError, match="does not fit this training") as caught:
            load_state_(checkpoint, named, torch.optim.SGD(named.values()))
        assert "--overwrite" in str(caught.value.hint)


def test_what_fails_inside_the_library_is_raised_as_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(FileExistsError):
        save_state(tmp_path / "file", {"weight": weight}, torch.optim.SGD([weight]))


class Called:
    """Pickled, it is a call of `Path.touch`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_record_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """The library unpickles the record of a checkpoint; an altered one may have sums that fit."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight])
    save_state(tmp_path, {"weight": weight}, optimizer)
    load_state_(tmp_path, {"weight": weight}, optimizer)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Called(tmp_path / "ran")))
    with pytest.raises(VerificationError, match="does not fit"):
        load_state_(tmp_path, {"weight": weight}, optimizer)
    assert not (tmp_path / "ran").exists()
