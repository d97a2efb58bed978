"""What a format cannot express is refused by every command from the config alone: exit 3, nothing written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.main import invoke
from compressor.core.errors import UnsupportedError
from compressor.recipe.recipe import Export
from exporters.registry import exporter_of
from tests.rope_forms import write_source

WINDOW: dict[str, Any] = {"sliding_window": 32, "rope_theta": 10_000.0}
MIXED = {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}
DYNAMIC: dict[str, Any] = {"rope_theta": 10_000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
YARN: dict[str, Any] = {
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
def test_every_command_refuses_before_it_opens_a_weight(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_text: Callable[..., Path],
    family: str,
    fields: dict[str, Any],
    format_name: str,
    field: str,
) -> None:
    directory, out = source(tmp_path, family, fields), str(tmp_path / "out")
    (directory / "model.safetensors").write_bytes(b"never opened")
    text, size = str(make_text(num_words=50)), ["--shape", "intermediate_size=64"]
    formats = ["--formats", f"huggingface,{format_name}", "--tokens", "0"]
    for words in (
        ["export", str(directory), "--format", format_name, "-o", out],
        ["plan", str(directory), *size, *formats],
        ["run", str(directory), *size, *formats, "--calib-data", text, "-o", out],
    ):
        assert invoke(words) == 3
        said = capsys.readouterr().err
        assert field in said
        assert "--format huggingface" in said
        assert not Path(out).exists()
    assert invoke(["plan", str(directory), *size, "--formats", "huggingface", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exports"] == ["huggingface"]


MISTRAL = {"model_type": "mistral", "sliding_window": None}
QWEN = {"model_type": "qwen2", "use_sliding_window": False}
WINDOWED = {**QWEN, "use_sliding_window": True, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({**MISTRAL, "sliding_window": 64}, "sliding_window"),
        ({"model_type": "mistral"}, "sliding_window"),  # its class's default is 4096
        ({**MISTRAL, "sliding_window": 64, "use_sliding_window": False}, "sliding_window"),  # no such switch
        ({**WINDOWED, "sliding_window": 64}, "sliding_window"),
        ({**WINDOWED, "sliding_window": 64, "max_window_layers": 0}, "sliding_window"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8192}, "sliding_window"),
        ({"model_type": "llama", "architectures": ["MistralForCausalLM"]}, "architectures"),
        ({"model_type": "llama", "sliding_window": 64}, "sliding_window"),
        ({"model_type": "llama", "seq_length": 64}, "seq_length"),
        ({**QWEN, "rope_scaling": DYNAMIC["rope_scaling"]}, "rope_scaling"),
        ({"model_type": "nemotron"}, "model_type"),
        (MISTRAL, None),
        ({**MISTRAL, "sliding_window": 32768}, None),
        (QWEN, None),
        ({"model_type": "qwen3", "sliding_window": 4096, "max_window_layers": 1}, None),
        ({**WINDOWED, "sliding_window": 32768}, None),
        ({**QWEN, "rope_scaling": {**YARN["rope_scaling"], "original_max_position_embeddings": 8192}}, None),
    ],
)
def test_what_a_graph_cannot_express_is_refused_from_the_config(
    changes: dict[str, Any], field: str | None
) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = {**shape, "vocab_size": 331, "num_key_value_heads": 2, "max_position_embeddings": 32768}
    for name in ("onnx", "onnx-fp16", "onnx-int4"):
        expected = pytest.raises(UnsupportedError, match=field) if field else contextlib.nullcontext()
        with expected:
            exporter_of(name).check({**config, "rope_theta": 10_000.0, **changes}, Export(), None)
