"""What a format cannot express is refused by every command from the config alone: exit 3, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.main import invoke
from tests.rope_forms import write_source

WINDOW = {"sliding_window": 32, "rope_theta": 10_000.0}
MIXED = {
    "use_sliding_window": True,
    "sliding_window": 32,
    "max_window_layers": 1,
    "rope_theta": 10_000.0,
}
DYNAMIC = {"rope_theta": 10_000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
YARN = {
    "rope_theta": 10_000.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("mistral", WINDOW, "onnx", "sliding_window"),
    ("mistral", WINDOW, "tensorrt-llm", "sliding_window"),
    ("qwen2", MIXED, "onnx", "sliding_window"),
    ("qwen3", MIXED, "tensorrt-llm", "sliding_window"),
    ("qwen2", YARN, "tensorrt-llm", "rope_scaling"),
    ("llama", DYNAMIC, "onnx", "rope_scaling"),
    ("llama", DYNAMIC, "tensorrt-llm", "rope_scaling"),
    ("phi3", {}, "onnx", "model_type"),
    ("phi3", {}, "tensorrt-llm", "model_type"),
]


def source(tmp_path: Path, family: str, fields: dict[str, Any]) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    write_source(directory, family, fields)
    return directory


@pytest.mark.parametrize(("family", "fields", "format_name", "field"), CASES)
def test_export_refuses_before_it_opens_a_weight(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    family: str,
    fields: dict[str, Any],
    format_name: str,
    field: str,
) -> None:
    directory = source(tmp_path, family, fields)
    (directory / "model.safetensors").write_bytes(b"never opened")
    out_dir = tmp_path / "out"
    assert invoke(["export", str(directory), "--format", format_name, "-o", str(out_dir)]) == 3
    said = capsys.readouterr().err
    assert field in said
    assert "--format huggingface" in said
    assert not out_dir.exists()


@pytest.mark.parametrize(("family", "fields", "format_name", "field"), CASES)
def test_plan_and_run_refuse_as_well(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_text: Callable[..., Path],
    family: str,
    fields: dict[str, Any],
    format_name: str,
    field: str,
) -> None:
    directory, out_dir = source(tmp_path, family, fields), tmp_path / "out"
    size = ["--shape", "intermediate_size=64", "--formats", f"huggingface,{format_name}", "--tokens", "0"]
    assert invoke(["plan", str(directory), *size]) == 3
    assert field in capsys.readouterr().err
    text = str(make_text(num_words=50))
    assert invoke(["run", str(directory), *size, "--calib-data", text, "-o", str(out_dir)]) == 3
    assert field in capsys.readouterr().err
    assert not out_dir.exists()
    assert invoke(["plan", str(directory), *size[:2], "--formats", "huggingface", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exports"] == ["huggingface"]
