"""Signals, closed pipes, full and missing places, odd paths: one message, its exit code, no traceback."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import requests
from tokenizers import Tokenizer

from compressor.cli import main as program
from tests.integration.command import PROGRAM, TIMEOUT_S, command, command_here, start, wait_for

PLAN = ("plan", "smollm2-135m", "--target", "50%")


@pytest.mark.parametrize("is_nohup", [False, True], ids=["hang-up", "nohup"])
def test_a_hang_up_is_an_interruption_unless_it_is_ignored(
    tiny_checkpoint: Path, tmp_path: Path, is_nohup: bool
) -> None:
    out = tmp_path / "text"
    words = ("generate", tiny_checkpoint, "--tokens", "10m", "-o", out)
    process = start(*words, ignore=signal.SIGHUP if is_nohup else None)
    wait_for((tmp_path / "text.partial" / "text.jsonl").is_file, process)
    process.send_signal(signal.SIGHUP)
    if is_nohup:
        size = (tmp_path / "text.partial" / "text.jsonl").stat().st_size
        wait_for(lambda: (tmp_path / "text.partial" / "text.jsonl").stat().st_size > size, process)
        process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert complaint.strip().splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in complaint
    # It can be taken up again: the same command goes on where this one ended.
    assert (tmp_path / "text.partial" / "stage.json").is_file()


def test_a_reader_that_closes_the_pipe_ends_the_program_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [*PROGRAM, *PLAN], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_standard_stream_is_no_error() -> None:
    shell = f"exec {shlex.join(PROGRAM)} {' '.join(PLAN)} >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", shell], check=False).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_is_exit_5() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PROGRAM, *PLAN], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_that_knows_only_latin_gets_escapes(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("model: smollm2-135m\ntarget: 50%\ndistill: {data: 日本.txt}\n", encoding="utf-8")
    done = command("plan", "--config", config, env={"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert "\\u65e5\\u672c.txt" in done.stdout


def test_a_current_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = command_here("prune", tiny_checkpoint, "--target", "60%", "--calib-data", "x.txt", "-o", "out")
    says_one_error(done, 2)


def test_a_temporary_directory_that_cannot_be_written_is_exit_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_place(*_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/x']")

    found = raised(no_place, monkeypatch)
    says_one_error(found, 5)
    assert "set TMPDIR" in found.stderr


def says_one_error(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


def raised(
    function: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> subprocess.CompletedProcess[str]:
    """What the program makes of what a library raises inside a command."""
    failing = click.Command("failing", callback=function)
    monkeypatch.setitem(program.COMMANDS, "failing", ("", "fails"))
    monkeypatch.setitem(program.cli.commands, "failing", failing)
    return command_here("failing")


def test_a_panic_of_a_library_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, of the tokenizers library: its class derives from BaseException."""

    def panic() -> None:
        vocabulary = '{"type": "BPE", "vocab": {"a": 0}, "merges": []}'
        text = f'{{"version": "1.0", "model": {vocabulary}, "added_tokens": []}}'
        tokenizer = Tokenizer.from_str(text)
        tokenizer.enable_truncation(max_length=4, stride=3)
        tokenizer.enable_truncation(max_length=1, stride=5)
        tokenizer.encode("aaaaaa")

    done = raised(panic, monkeypatch)
    if done.returncode != 8:
        pytest.skip("this version of tokenizers does not panic on this input")
    says_one_error(done, 8)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (type("PanicException", (BaseException,), {})("index out of bounds"), 8),
        (EOFError("Ran out of input"), 8),
        (RecursionError("maximum recursion depth exceeded"), 8),
        (UnicodeEncodeError("utf-8", "x\udc80", 1, 2, "surrogates not allowed"), 2),
        (OSError(36, "File name too long", "x" * 9000), 2),
        (NotADirectoryError(20, "Not a directory", "/dev/null/x"), 2),
        (OSError(40, "Too many levels of symbolic links", "loop"), 2),
        (BrokenPipeError(32, "Broken pipe"), 141),
        (requests.exceptions.ChunkedEncodingError("Connection broken"), 9),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("nobody expected it"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_nobody_caught_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    done = raised(fail, monkeypatch)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 9_000


def test_an_error_moves_no_cursor_and_fills_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("\x1b[2J\x1b]0;title\x07" + "x" * 100_000)

    done = raised(fail, monkeypatch)
    assert "\x1b" not in done.stderr
    assert "\\x1b[2J" in done.stderr
    assert len(done.stderr) < 9_000


OUTPUTS = {
    "no name": lambda here: "/",
    "here": lambda here: ".",
    "above": lambda here: "..",
    "above, at the end": lambda here: f"{here}/a/..",
    "too long a name": lambda here: here / ("x" * 256),
    "too long with its suffix": lambda here: here / ("x" * 250),
    "too long a path": lambda here: "/".join([str(here), *["x" * 200] * 30]),
    "through a file": lambda here: here / "file" / "out",
    "a file": lambda here: here / "file",
    "a file and a slash": lambda here: f"{here / 'file'}/",
    "a loop": lambda here: here / "loop",
    "through a loop": lambda here: here / "loop" / "out",
    "a dangling link": lambda here: here / "dangling",
    "a link to a directory": lambda here: here / "link",
    "a fifo": lambda here: here / "fifo",
    "something else": lambda here: here / "full",
}


@pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_path_that_cannot_be_used_is_refused_at_once(
    tmp_path: Path, tiny_checkpoint: Path, make: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("empty")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path / "a")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    out = make(tmp_path)
    done = command_here("export", tiny_checkpoint, "--format", "tensorrt-llm", "-o", out)
    says_one_error(done, 2)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "x" * 5000, "--target", "50%"),
        ("prune", "/dev/null/model", "--target", "50%"),
        ("export", "/dev/zero", "--format", "onnx"),
        ("evaluate", "x" * 300, "--data", "y" * 300),
        ("generate", "smollm2-135m", "--tokens", "9" * 400),
        ("generate", "smollm2-135m", "--tokens", "5", "--seed", 10**30),
        ("quantize", "m", "--fp8", "--calib-size", 10**30),
        ("evaluate", "m", "--data", "t", "--seq-len", 10**30),
        ("bench", "m", "n", "--isl-osl", f"{'9' * 5000}/1"),
        ("bench", "m", "n", "--batch-size", "²"),
        ("bench", "--random-weights", "llama3.1-8b:hidden_size=" + "9" * 30, "smollm2-135m"),
        ("prune", "m", "--shape", "hidden_size=٣"),
        ("distill", "m", "--teacher", "t", "--learning-rate", "nan"),
        ("distill", "m", "--teacher", "t", "--tokens", "0"),
        ("distill", "m"),
        ("sparsify", "m", "--sparsity", "٢:٤"),
        ("sparsify", "m", "--recovery-kl-weight", "inf"),
    ],
    ids=lambda words: " ".join(map(str, words))[:60],
)
def test_absurd_arguments_are_usage_errors(tmp_path: Path, words: tuple[object, ...]) -> None:
    done = command_here(*words, "-o", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr) < 9_000
    assert not list(tmp_path.iterdir())
