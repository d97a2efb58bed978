"""The writer against golden files of ModelOpt's exporter: the same names, shapes, dtypes and bytes.

`tests/oracles/record_tensorrt_llm.py` recorded them; that exporter is not imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor.quantization.amax import write_amax
from exporters.tensorrt_llm.config import Parallelism
from exporters.tensorrt_llm.fields import FIELDS
from tests.golden_students import ARCHITECTURES, ROPES, golden_config, write_student
from tests.oracles.record_tensorrt_llm import DTYPES, GOLDEN, TP_SIZES, described
from tests.unit.exporters.tensorrt_llm.conftest import write

# ModelOpt's layout has no fields of their own for Qwen, writes float16 logits where TensorRT-LLM defaults
# to float32, and adds fields that TensorRT-LLM does not read.
COMPARED = (
    *("architecture", "dtype", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_size", "intermediate_size", "vocab_size", "head_size", "max_position_embeddings"),
    *("hidden_act", "norm_epsilon", "position_embedding_type", "use_parallel_embedding"),
    *("embedding_sharding_dim", "mapping", "quantization", "rotary_base"),
)


def recorded(name: str) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return golden


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_modelopt_wrote_the_same(tmp_path: Path, model_type: str, precision: str) -> None:
    golden = recorded(f"{model_type}-{precision}")
    student, is_fp8 = write_student(tmp_path / "student", golden["student"]), precision == "fp8"
    if is_fp8:
        write_amax(student, {name: torch.tensor(value) for name, value in golden["amax"].items()})
    assert set(golden["by_tp_size"]) == set(map(str, TP_SIZES))
    for tp_size in TP_SIZES:
        expected = golden["by_tp_size"][str(tp_size)]
        made = write(
            student,
            tmp_path / f"tp{tp_size}",
            precision=precision,
            parallelism=Parallelism(tp_size=tp_size),
            fp8_kv_cache=is_fp8,
            dtype=getattr(torch, DTYPES[precision]),
        )
        config = json.loads((made / "config.json").read_text())
        assert {name: config[name] for name in COMPARED} == {n: expected["config"][n] for n in COMPARED}
        assert config["rotary_scaling"] == expected["config"].get("rotary_scaling")
        ranks = [described(load_file(made / f"rank{rank}.safetensors")) for rank in range(tp_size)]
        assert len(ranks) == len(expected["ranks"])
        for number, (found, wanted) in enumerate(zip(ranks, expected["ranks"], strict=True)):
            assert set(found) == set(wanted), number
            differing = [name for name in wanted if found[name] != wanted[name]]
            assert not differing, f"rank {number}: {differing[0]}: {found[differing[0]]}"


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_modelopt_wrote_the_same_rope(tmp_path: Path, model_type: str, rope: str) -> None:
    expected = recorded("rope")["configs"][model_type][rope]
    student = write_student(tmp_path / "student", golden_config(model_type, "bfloat16", rope=rope))
    made = write(student, tmp_path / "made", precision="bf16", parallelism=Parallelism())
    config = json.loads((made / "config.json").read_text())
    assert {name: config[name] for name in expected} == expected


def test_a_golden_file_notices_one_swapped_pair_of_rows(tmp_path: Path) -> None:
    golden = recorded("qwen2-bf16")["by_tp_size"]["1"]["ranks"][0]
    student = write_student(tmp_path / "student", golden_config("qwen2", "bfloat16"))
    made = write(student, tmp_path / "made", precision="bf16", parallelism=Parallelism())
    tensors = load_file(made / "rank0.safetensors")
    name = "transformer.layers.1.attention.qkv.bias"
    tensors[name] = tensors[name].roll(1)
    assert {key for key, value in described(tensors).items() if value != golden[key]} == {name}


def test_the_golden_files_are_of_the_versions_that_knew_rope_and_qwen() -> None:
    for path in sorted(GOLDEN.glob("*.json")):
        versions = json.loads(path.read_text(encoding="utf-8"))["recorded_with"]
        assert versions["nvidia-modelopt"].startswith("0.47."), path
        assert versions["transformers"].startswith("4.57."), path
    assert {golden_config(name, "bfloat16")["architectures"][0] for name in ARCHITECTURES} < set(FIELDS)
