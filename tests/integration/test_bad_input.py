"""Every bad input: one clear message, its exit code, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.cli.main import invoke

Capture = pytest.CaptureFixture[str]
SHAPE = ("--shape", "hidden_size=48,intermediate_size=128")


@pytest.fixture
def broken(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A maker of copies of the tiny checkpoint, each broken in one way."""

    def make(how: str) -> Path:
        path = tmp_path / how
        shutil.copytree(tiny_checkpoint, path)
        weights, config = path / "model.safetensors", path / "config.json"
        if how == "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        elif how == "nan":
            tensors = load_file(weights)
            tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
            save_file(tensors, weights, metadata={"format": "pt"})
        elif how in ("lacking", "other-shape"):
            tensors = load_file(weights)
            up = tensors.pop("model.layers.1.mlp.up_proj.weight")
            if how == "other-shape":
                tensors["model.layers.1.mlp.up_proj.weight"] = up[:-8].clone()
            save_file(tensors, weights, metadata={"format": "pt"})
        elif how == "tokenizer":
            (path / "tokenizer.json").write_text("{")
        elif how == "no-config":
            config.unlink()
        elif how == "no-weights":
            weights.unlink()
        else:
            changes = {
                "model-type": {"model_type": "mamba"},
                "quantised": {"quantization_config": {"quant_method": "gptq"}},
            }[how]
            config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        return path

    return make


def fails(capsys: Capture, code: int, message: str, *arguments: object) -> None:
    assert invoke([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("error:") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("truncated", 8, "truncated or corrupt"),
        ("nan", 8, "model.layers.1.mlp.up_proj.weight"),
        ("lacking", 8, "lacks a tensor"),
        ("other-shape", 8, "not the shape its config says"),
        ("tokenizer", 8, "the tokenizer cannot be read"),
        ("no-config", 2, "config.json"),
        ("no-weights", 2, "no safetensors weights"),
        ("model-type", 3, "'mamba' is not supported"),
        ("quantised", 3, "already quantised"),
    ],
)
def test_broken_checkpoints(
    broken: Callable[[str], Path],
    tiny_text: Path,
    tmp_path: Path,
    capsys: Capture,
    how: str,
    code: int,
    message: str,
) -> None:
    out = tmp_path / "out"
    fails(capsys, code, message, "prune", broken(how), *SHAPE, "--calib-data", tiny_text, "-o", out)
    assert not out.exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("llama3.1-9b", 2, "did you mean llama3.1-8b"),
        ("./nowhere", 2, "does not exist"),
        ("./nowhere.gguf", 2, "does not exist"),
        ("minitron-8b", 3, "not pruned yet"),
        ("nobody/no-such-model", 9, "cannot be downloaded"),
    ],
)
def test_models_that_are_not_there(
    tmp_path: Path, capsys: Capture, model: str, code: int, message: str
) -> None:
    out = tmp_path / "out"
    fails(capsys, code, message, "run", model, "--target", "50%", "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("9b", "not below the teacher's size"),
        ("1k", "too small to reach"),
        ("60%", "no shape on the grid is within 2%"),
        ("four", "neither a size nor a published shape"),
    ],
)
def test_targets_out_of_range(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture, target: str, message: str
) -> None:
    fails(capsys, 2, message, tiny_checkpoint, "--target", target, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def prune(checkpoint: Path, text: Path | str, out: Path) -> tuple[object, ...]:
    return ("prune", checkpoint, *SHAPE, "--calib-data", text, "--calib-seq-len", 64, "-o", out)


@pytest.mark.parametrize(
    ("content", "message"), [("", "empty"), ("too short\n", "shorter than one sequence"), (None, "not exist")]
)
def test_calibration_texts(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture, content: str | None, message: str
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_text(content)
    fails(capsys, 2, message, *prune(tiny_checkpoint, text, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calib-data", "nowhere.txt"), "does not exist"),
        (("--train-data", "nowhere.txt"), "does not exist"),
        (("--eval-data", "nowhere.txt"), "does not exist"),
        (("--calib-seq-len", 100_000), "shorter than one sequence"),
        (("--formats", "huggingface,huggingface-fp8"), "needs FP8 quantization"),
        (("--fp8-kv-cache",), "needs FP8 quantization"),
        (("--target", "50%"), "not both"),
    ],
)
def test_a_run_that_cannot_end_writes_nothing(
    tiny_checkpoint: Path,
    tiny_text: Path,
    tmp_path: Path,
    capsys: Capture,
    options: tuple[object, ...],
    message: str,
) -> None:
    out = tmp_path / "out"
    texts = ("--calib-data", tiny_text, "--train-data", tiny_text, "--tokens", 640, "--context-length", 32)
    fails(capsys, 2, message, "run", tiny_checkpoint, *SHAPE, *texts, "--quiet", *options, "-o", out)
    assert not out.exists()


def test_a_failed_stage_can_be_repeated_with_better_input(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short\n")
    fails(capsys, 2, "shorter", *prune(tiny_checkpoint, short, tmp_path / "out"))
    good = [str(argument) for argument in prune(tiny_checkpoint, tiny_text, tmp_path / "out")]
    assert invoke([*good, "--calib-size", "4"]) == 0


def test_a_directory_that_is_not_ours_is_not_touched(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    for flags in ((), ("--overwrite",)):
        fails(capsys, 2, "in use", *prune(tiny_checkpoint, tiny_text, out), *flags)
        fails(capsys, 2, "in use", tiny_checkpoint, *SHAPE, "--tokens", 0, "-o", out, *flags)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_nothing_to_resume(tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, capsys: Capture) -> None:
    fails(capsys, 2, "nothing to resume", *prune(tiny_checkpoint, tiny_text, tmp_path / "out"), "--resume")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", *SHAPE, "--tokens", 0), 4, "no trtllm-build on PATH"),
        (("export", "--format", "tensorrt-llm", "--precision", "fp16"), 4, "release:1.2.1"),
        (("run", *SHAPE, "--formats", "huggingface,onnx"), 2, "no engine is built from"),
        (("export", "--format", "onnx"), 2, "no engine is built from"),
    ],
)
def test_an_engine_that_is_required_and_cannot_be_built_is_refused_at_once(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    command, *options = arguments
    fails(
        capsys, code, message, command, tiny_checkpoint, *options, "--require-engine", "-o", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_a_usage_error(capsys: Capture) -> None:
    assert invoke(["plan", "llama3.1-8b", "--targt", "4b"]) == 2
    assert "--target" in capsys.readouterr().err


def test_an_infinite_weight_is_as_bad_as_nan(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "inf"
    shutil.copytree(tiny_checkpoint, path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("inf"))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    fails(capsys, 8, "model.norm.weight", "verify", path)
