"""Cheap checks come first: nothing is converted, hashed or written before what is wrong anyway is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.api import execution
from tests.gguf_files import TinyGguf
from tests.integration.command import command_here

Words = tuple[object, ...]
SHAPE = ("--shape", "hidden_size=48,intermediate_size=64")


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose opening leaves a trace: the directory it is converted into."""
    return TinyGguf().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


COMMANDS: dict[str, Words] = {
    "prune": ("prune", "MODEL", *SHAPE, "--calib-data", "TEXT"),
    "reconstruct": ("reconstruct", "MODEL", "--teacher", "MODEL", "--calib-data", "TEXT"),
    "search": ("search", "MODEL", "--target", 60144, "--calib-data", "TEXT", "--train-data", "TEXT"),
    "generate": ("generate", "MODEL", "--tokens", 100, "--prompts", "TEXT"),
    "correct": ("correct-teacher", "MODEL", "--train-data", "TEXT", "--tokens", 1000),
    "logits": ("cache-logits", "MODEL", "--train-data", "TEXT", "--tokens", 1000),
    "distill": ("distill", "MODEL", "--teacher", "MODEL", "--train-data", "TEXT", "--tokens", 1000),
    "sparsify": ("sparsify", "MODEL", "--calib-data", "TEXT"),
    "quantize": ("quantize", "MODEL", "--fp8", "--calib-data", "TEXT"),
    "evaluate": ("evaluate", "MODEL", "MODEL", "--data", "TEXT"),
    "run": ("run", "MODEL", *SHAPE, "--calib-data", "TEXT", "--train-data", "TEXT", "--tokens", 1000),
}
WITHOUT_TEXT: dict[str, Words] = {
    "export": ("export", "MODEL", "--format", "onnx"),
    "bench": ("bench", "MODEL", "MODEL", "--runtime", "torch", "--precision", "fp32"),
}
TRAINED, CALIBRATED = ("--train-data", "GOOD"), ("--calib-data", "GOOD")
BY_TASK = ("--depth-importance", "task", "--depth-task", "arc_easy")
BEFORE_ANY_MODEL: dict[str, tuple[int, Words]] = {
    "an absent second model": (2, ("evaluate", "MODEL", "./nowhere", "--data", "GOOD")),
    "an absent teacher": (2, ("distill", "MODEL", "--teacher", "./nowhere", *TRAINED)),
    "no teacher": (2, ("distill", "MODEL", *TRAINED)),
    "absent stored logits": (2, ("distill", "MODEL", "--teacher-logits", "./nowhere", *TRAINED)),
    "stored logits at another temperature": (
        2,
        ("distill", "MODEL", "--teacher-logits", "./nowhere", "--temperature", 2, *TRAINED),
    ),
    "an unreachable target": (2, ("prune", "MODEL", "--target", "1k", *CALIBRATED)),
    "tasks without lm-eval": (4, ("evaluate", "MODEL", "--tasks", "arc_easy")),
    "layers by a task without lm-eval": (
        4,
        ("prune", "MODEL", "--shape", "num_hidden_layers=1", *BY_TASK, *CALIBRATED),
    ),
    "no server": (4, ("bench", "MODEL", "MODEL", "--runtime", "tensorrt-llm")),
    "no such precision": (2, ("bench", "MODEL", "MODEL", "--precision", "bf16")),
    "no kernels": (3, ("bench", "MODEL", "MODEL", "--runtime", "torch", "--precision", "fp8")),
    "no engine builder": (4, ("export", "MODEL", "--format", "tensorrt-llm", "--require-engine")),
    "a format of another command": (3, ("export", "MODEL", "--format", "onnx", "--precision", "fp8")),
    "FP8 of a model that is not quantized": (
        2,
        ("export", "MODEL", "--format", "huggingface", "--precision", "fp8"),
    ),
    "a GPU that is not there": (2, ("quantize", "MODEL", "--fp8", *CALIBRATED, "--device", "cuda")),
}


def words_of(words: Words, model: Path, *, text: object, good: Path) -> Words:
    known = {"MODEL": model, "TEXT": text, "GOOD": good}
    return tuple(known.get(word, word) if isinstance(word, str) else word for word in words)


def refused(words: Words, code: int, here: Path) -> None:
    """The command fails with this code, says so once, and leaves nothing beside its output directory."""
    before = sorted(here.rglob("*"))
    done = command_here(*words)
    assert done.returncode == code, done.stderr
    assert done.stderr.lower().count("error:") == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_an_absent_text_is_said_before_a_model_is_converted(
    gguf_model: Path, tiny_text: Path, tmp_path: Path, name: str
) -> None:
    words = words_of(COMMANDS[name], gguf_model, text=tmp_path / "absent.txt", good=tiny_text)
    refused((*words, "-o", tmp_path / "out"), 2, tmp_path)


@pytest.mark.parametrize("name", [*COMMANDS, *WITHOUT_TEXT])
def test_an_output_directory_in_use_is_said_before_a_model_is_converted(
    gguf_model: Path, tiny_text: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    words = words_of({**COMMANDS, **WITHOUT_TEXT}[name], gguf_model, text=tiny_text, good=tiny_text)
    refused((*words, "-o", tmp_path / "out"), 2, tmp_path)


@pytest.mark.parametrize("name", BEFORE_ANY_MODEL)
def test_what_is_wrong_anyway_is_said_before_a_model_is_converted(
    gguf_model: Path, tiny_text: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither builder nor server
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lm_eval" else name)
    code, words = BEFORE_ANY_MODEL[name]
    words = words_of(words, gguf_model, text=tiny_text, good=tiny_text)
    refused((*words, "-o", tmp_path / "out"), code, tmp_path)


def test_a_teacher_is_not_hashed_for_an_absent_text(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(execution, "open_checkpoint", lambda *words, **_: opened.append(words))
    words = words_of(COMMANDS["distill"], tiny_checkpoint, text=tmp_path / "absent.txt", good=tmp_path)
    refused((*words, "-o", tmp_path / "out"), 2, tmp_path)
    assert not opened


def test_fp8_of_a_model_that_is_not_quantized_names_the_command_that_does_it(
    gguf_model: Path, tmp_path: Path
) -> None:
    words = ("export", gguf_model, "--format", "huggingface", "--precision", "fp8", "-o", tmp_path / "out")
    assert f"compress-export quantize {gguf_model} --fp8" in command_here(*words).stderr
