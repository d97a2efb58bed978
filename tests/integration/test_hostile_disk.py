"""A disk that is really full: exit 5 wherever it strikes, and the same command succeeds when there is room.

The disk is a small tmpfs, filled up to a number of bytes before each command; with several numbers it
strikes in several places of the same command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compressor.pipeline import running
from tests.gguf_files import TinyGguf
from tests.integration.command import command_here
from tests.tiny_models import make_model, save_checkpoint

MOUNT, UMOUNT = shutil.which("mount"), str(shutil.which("umount"))
SIZE = 24 << 20
SHAPE = ("--shape", "hidden_size=48,intermediate_size=128")
CALIBRATION = ("--calib-seq-len", 64, "--calib-size", 4)
SEQUENCES = ("--tokens", 1280, "--context-length", 64)
TRAINING = (*SEQUENCES, "--train-batch-size", 4, "--save-steps", 2)
BENCH = ("--runtime", "torch", "--precision", "fp32", "--isl-osl", "8/2", "--batch-size", 1)
Words = tuple[object, ...]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 24 MiB in memory."""
    path = tmp_path_factory.mktemp("disk")
    if (
        MOUNT is None
        or subprocess.run(
            [MOUNT, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system can be mounted here (it takes root)")
    yield path
    # Lazily: a training that failed here leaves its log open until the process ends.
    subprocess.run([UMOUNT, "--lazy", str(path)], check=True)


@pytest.fixture
def disk(mounted: Path) -> Iterator[Path]:
    """The file system, empty."""
    yield mounted
    for path in mounted.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def leave(disk: Path, num_bytes: int) -> Path:
    """Fill the disk but for so many bytes; returns the file that fills it."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - num_bytes))
    return filler


def commands(model: Path, text: Path) -> dict[str, Words]:
    calibration, training = ("--calib-data", text, *CALIBRATION), ("--train-data", text, *TRAINING)
    return {
        "prune": ("prune", model, *SHAPE, *calibration),
        "generate": ("generate", model, "--tokens", 20_000, "--max-new-tokens", 64),
        "logits": ("cache-logits", model, "--train-data", text, *SEQUENCES),
        "correct": ("correct-teacher", model, *training),
        "distill": ("distill", model, "--teacher", model, *training),
        "sparsify": ("sparsify", model, *calibration),
        "recover": ("sparsify", model, "--sparsity-method", "ast", *calibration, *training),
        "quantize": ("quantize", model, "--fp8", *calibration),
        "export huggingface": ("export", model, "--format", "huggingface"),
        "convert": ("prune", model, "--shape", "hidden_size=48", *calibration),
        "export tensorrt-llm": ("export", model, "--format", "tensorrt-llm"),
        "bench": ("bench", model, model, *BENCH),
    }


def assert_full(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 5, done.stderr
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("room", [0, 24 << 10, 150 << 10])
@pytest.mark.parametrize("name", list(commands(Path(), Path())))
def test_a_full_disk_is_exit_5(
    disk: Path, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, name: str, room: int
) -> None:
    if name in ("generate", "bench") and room:
        pytest.skip("what this command writes fits into so much room")
    model = tiny_checkpoint
    if name == "export huggingface":  # which copies the model
        model = save_checkpoint(tmp_path / "model", make_model().to(torch.bfloat16))
    elif name == "convert":
        model = TinyGguf().write(tmp_path / "tiny.gguf")
    leave(disk, room)
    assert_full(command_here(*commands(model, tiny_text)[name], "-o", disk / "out"))
    assert not (disk / "out").exists()


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int4", "evaluate"])
def test_a_full_disk_of_a_command_that_runs_another_program_or_writes_little(
    disk: Path, tiny_checkpoint: Path, tiny_text: Path, kind: str
) -> None:
    words: Words = ("export", tiny_checkpoint, "--format", "onnx", "--precision", kind)
    if kind == "evaluate":
        words = ("evaluate", tiny_checkpoint, "--data", tiny_text, "--seq-len", 64, "--size", 2)
    leave(disk, 0 if kind == "evaluate" else 200 << 10)
    assert_full(command_here(*words, "-o", disk / "out"))


@pytest.mark.parametrize("room", [0, 16 << 10, 400 << 10])
def test_a_run_whose_disk_fills_up_while_it_works(
    disk: Path, tiny_checkpoint: Path, tiny_text: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of free space before the run is left out: another process takes the room meanwhile."""
    monkeypatch.setattr(running, "free_disk_bytes", lambda _path: 1 << 40)
    filler = leave(disk, room)
    words = (
        "run",
        tiny_checkpoint,
        *SHAPE,
        "--importance",
        "random",
        "--tokens",
        0,
        "--repair",
        "off",
        "--quiet",
    )
    words += ("--eval-data", tiny_text, "--formats", "tensorrt-llm", "-o", disk / "run")
    assert_full(command_here(*words))
    if room == 400 << 10:
        filler.unlink()
        done = command_here(*words)
        assert done.returncode == 0, done.stderr
        assert (disk / "run" / "README.md").is_file()


def test_training_goes_on_from_its_checkpoint_when_there_is_room(
    disk: Path, tiny_checkpoint: Path, tiny_text: Path
) -> None:
    words = (*commands(tiny_checkpoint, tiny_text)["distill"], "-o", disk / "out")
    filler = leave(disk, 1 << 20)  # the first checkpoint takes 0.6 MiB
    assert_full(command_here(*words))
    filler.unlink()
    done = command_here(*words, "--resume")
    assert done.returncode == 0, done.stderr


def test_an_output_directory_that_cannot_even_be_made(disk: Path, tiny_checkpoint: Path) -> None:
    assert MOUNT is not None
    sealed = disk / "sealed"
    sealed.mkdir()
    subprocess.run([MOUNT, "-t", "tmpfs", "-o", "ro", "tmpfs", str(sealed)], check=True)
    try:
        done = command_here("export", tiny_checkpoint, "--format", "tensorrt-llm", "-o", sealed / "a" / "out")
    finally:
        subprocess.run([UMOUNT, str(sealed)], check=True)
    assert_full(done)
