"""Every bad input: one clear message, its exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.cli.main import invoke

Capture = pytest.CaptureFixture[str]
Words = tuple[object, ...]
SHAPE = ("--shape", "hidden_size=48,intermediate_size=128")


def edit(path: Path, **fields: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


WEIGHTS, UP = "model.safetensors", "model.layers.1.mlp.up_proj.weight"
GPTQ = {"quant_method": "gptq"}
BROKEN: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "truncated": (lambda path: os.truncate(path / WEIGHTS, 9999), 8, "truncated or corrupt"),
    "nan": (lambda path: edit_weights(path, lambda found: found[UP][3].fill_(torch.nan)), 8, UP),
    "lacking": (lambda path: edit_weights(path, lambda found: found.pop(UP)), 8, "lacks a tensor"),
    "other-shape": (
        lambda path: edit_weights(path, lambda found: found.update({UP: found[UP][:-8].clone()})),
        8,
        "not the shape its config says",
    ),
    "tokenizer": (lambda path: (path / "tokenizer.json").write_text("{"), 8, "the tokenizer cannot be read"),
    "no-config": (lambda path: (path / "config.json").unlink(), 2, "config.json"),
    "no-weights": (lambda path: (path / WEIGHTS).unlink(), 2, "no safetensors weights"),
    "model-type": (lambda path: edit(path, model_type="mamba"), 3, "'mamba' is not supported"),
    "quantised": (lambda path: edit(path, quantization_config=GPTQ), 3, "already quantised"),
}


def fails(capsys: Capture, code: int, message: str, *arguments: object) -> None:
    assert invoke([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("error:") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("how", BROKEN)
def test_broken_checkpoints(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, capsys: Capture, how: str
) -> None:
    path, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / how)), tmp_path / "out"
    damage, code, message = BROKEN[how]
    damage(path)
    fails(capsys, code, message, "prune", path, *SHAPE, "--calib-data", tiny_text, "-o", out)
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


AST = ("--sparsity", "2:4", "--sparsity-method", "ast")
REPAIR = ("--repair", "least-squares", "--repair-steps", 5)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--calib-data", "nowhere.txt"), 2, "does not exist"),
        (("--train-data", "nowhere.txt"), 2, "does not exist"),
        (("--eval-data", "nowhere.txt"), 2, "does not exist"),
        (("--calib-seq-len", 100_000), 2, "shorter than one sequence"),
        (("--formats", "huggingface,huggingface-fp8"), 2, "needs FP8 quantization"),
        (("--fp8-kv-cache",), 2, "needs FP8 quantization"),
        (("--target", "50%"), 2, "one target or an explicit shape"),
        (("--sparsity", "2:x"), 2, "--sparsity"),
        ((*AST, "--tokens", 0), 2, "ast trains"),
        (("--sparsity", "2:4", "--slorb", "trained"), 3, "cannot carry the low-rank branch"),
        (("--repair", "off", "--repair-steps", 5), 2, "--repair is off, so"),
        ((*REPAIR, "--sparsity", "2:4", "--slorb", "fixed"), 3, "beside its low-rank branch"),
        (("--top-k-tail", "bucket"), 2, "top_k_tail bucket needs top_k"),
        (("--warmup-steps", 3, "--warmup-ratio", 0.1), 2, "warmup_steps and warmup_ratio"),
        (("--scores", "nowhere"), 2, "no saved scores"),
        (("--importance", "learned-masks", "--hidden-removal", "rotation"), 2, "masks are learned instead"),
    ],
)
def test_a_run_that_cannot_end_writes_nothing(
    tiny_checkpoint: Path,
    tiny_text: Path,
    tmp_path: Path,
    capsys: Capture,
    options: Words,
    code: int,
    message: str,
) -> None:
    out = tmp_path / "out"
    texts = ("--calib-data", tiny_text, "--train-data", tiny_text, "--tokens", 640, "--context-length", 32)
    fails(capsys, code, message, "run", tiny_checkpoint, *SHAPE, *texts, "--quiet", *options, "-o", out)
    assert not out.exists()


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
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "inf"))
    edit_weights(path, lambda found: found["model.norm.weight"].fill_(torch.inf))
    fails(capsys, 8, "model.norm.weight", "verify", path)
