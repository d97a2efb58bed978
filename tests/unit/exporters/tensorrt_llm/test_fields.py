"""The table of what TensorRT-LLM's config readers read: written configs keep to it, and faults are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.families import FAMILIES
from compressor.models.sparse.pattern import TWO_OF_FOUR
from compressor.models.sparse.record import SparsityRecord
from compressor.recipe.recipe import Export, TensorRTLLM
from exporters.registry import exporter_of
from exporters.tensorrt_llm.config import Parallelism, checkpoint_config
from exporters.tensorrt_llm.fields import FIELDS, check_fields
from tests.rope_forms import write_source
from tests.unit.exporters.conftest import OPTIONS, refuses
from tests.unit.exporters.tensorrt_llm.conftest import EXPORTED, Students, write

# By hand, from the readers: what stops the engine's build when it is missing, beside every dimension.
WITHOUT_DEFAULT = {
    "llama": set(),
    "mistral": set(),
    "nemotron": set(),
    "qwen2": {"seq_length", "qwen_type"},
    "qwen3": {"seq_length", "qwen_type"},
}


def config_of(students: Students, model_type: str, *, fp8: bool = False) -> dict[str, Any]:
    source = read_config(students.make(model_type, tied=False, dtype=torch.bfloat16))
    return checkpoint_config(
        source, dtype="bfloat16", parallelism=Parallelism(tp_size=2), fp8=fp8, fp8_kv_cache=fp8
    )


@pytest.mark.parametrize("fp8", [False, True], ids=["16bit", "fp8"])
@pytest.mark.parametrize("model_type", EXPORTED)
def test_every_field_that_is_written_is_in_the_table_and_its_loss_is_named(
    students: Students, model_type: str, fp8: bool
) -> None:
    written = config_of(students, model_type, fp8=fp8)
    assert written["architecture"] in FIELDS
    assert WITHOUT_DEFAULT[model_type] <= set(written)
    for name in written:
        with pytest.raises(VerificationError, match=rf"config\.json: {name}|architecture"):
            check_fields({key: value for key, value in written.items() if key != name})
    for name in ("tp_size", "world_size"):
        mapping = {key: value for key, value in written["mapping"].items() if key != name}
        with pytest.raises(VerificationError, match=rf"mapping\.{name}"):
            check_fields({**written, "mapping": mapping})


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "learned positions": ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
    "half logits": ({"logits_dtype": "float16"}, "logits_dtype"),
    "embedding on every rank": ({"use_parallel_embedding": False}, "use_parallel_embedding"),
    "embedding by columns": ({"embedding_sharding_dim": 1}, "embedding_sharding_dim"),
    "a truth for a number": ({"embedding_sharding_dim": False}, "embedding_sharding_dim"),
    "text for a number": ({"num_hidden_layers": "3"}, "num_hidden_layers"),
    "a fraction of a head": ({"head_size": 16.0}, "head_size"),
    "null for a number": ({"rotary_base": None}, "rotary_base"),
    "misspelt": ({"rotary_scale": 1.0}, "rotary_scale"),
    "stripped weights": ({"is_pruned": True}, "is_pruned"),
    "experts": ({"moe": {"num_experts": 8}}, "moe"),
    "another world": ({"mapping": {"world_size": 4, "tp_size": 2, "pp_size": 1}}, "world_size"),
    "int8 cache": (
        {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "INT8"}},
        "kv_cache_quant_algo",
    ),
    "all layers left out": (
        {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["*"]}},
        "exclude_modules",
    ),
    "head not left out": ({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}, "exclude"),
    "blockwise": (
        {"quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 64}},
        "group_size",
    ),
}


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_field_that_means_another_model_is_named(students: Students, model_type: str, how: str) -> None:
    changes, field = FAULTS[how]
    written = config_of(students, model_type)
    check_fields(written)
    with pytest.raises(VerificationError, match=field):
        check_fields({**written, **changes})


@pytest.mark.parametrize(
    ("model_type", "changes", "field"),
    [
        ("qwen2", {"seq_length": None}, "seq_length"),
        ("qwen3", {"seq_length": 4096}, "seq_length"),
        ("qwen3", {"qwen_type": "qwen2"}, "qwen_type"),
        ("qwen2", {"attn_bias": False}, "attn_bias"),
        ("nemotron", {"rotary_pct": 1.0}, "partial_rotary_factor"),
        ("nemotron", {"gpt_variant": "gpt2"}, "gpt_variant"),
        ("llama", {"attention_multiplier": 2.0}, "attention_multiplier"),
        ("llama", {"rotary_base": 10_000.0}, "config differs"),
        ("llama", {"norm_epsilon": 1e-5}, "config differs"),
        ("llama", {"rotary_scaling": {"rope_type": "linear", "factor": 2.0}}, "config differs"),
    ],
)
def test_verify_finds_a_changed_field_of_a_checkpoint(
    students: Students, tmp_path: Path, model_type: str, changes: dict[str, Any], field: str
) -> None:
    student = students.make(model_type, tied=True, dtype=torch.bfloat16)
    made = tmp_path / "made"
    made.mkdir()
    exporter_of("tensorrt-llm").write(student, made, OPTIONS)
    file = made / "checkpoint" / "config.json"
    dropped = [name for name, value in changes.items() if value is None]
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in dropped}))
    refuses("tensorrt-llm", made, student, match=field)


def test_seq_length_is_the_students_or_the_converters(students: Students) -> None:
    source = read_config(students.make("qwen2", tied=True, dtype=torch.bfloat16))
    options = {"dtype": "float16", "parallelism": Parallelism(), "fp8": False, "fp8_kv_cache": False}
    assert checkpoint_config(source, **options)["seq_length"] == 8192
    assert checkpoint_config({**source, "seq_length": 2048}, **options)["seq_length"] == 2048
    assert "seq_length" not in config_of(students, "llama")


@pytest.mark.parametrize(
    ("family", "fields", "expected"),
    [
        ("llama", {}, {"rotary_base": 10_000.0, "rotary_scaling": None}),
        ("mistral", {}, {"rotary_base": 10_000.0}),
        ("nemotron", {"rope_theta": 10_000.0, "rope_percent": 0.5}, {"rotary_pct": 0.5}),
        ("nemotron", {"rope_theta": 10_000.0}, {"rotary_pct": 0.5}),
        ("nemotron", {"rope_theta": 10_000.0, "partial_rotary_factor": 0.25}, {"rotary_pct": 0.25}),
    ],
)
def test_what_a_config_leaves_out_is_its_classes_default(
    tmp_path: Path, family: str, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    (tmp_path / "source").mkdir()
    write_source(tmp_path / "source", family, fields)
    made = write(tmp_path / "source", tmp_path / "made", precision="bf16", parallelism=Parallelism())
    config = json.loads((made / "config.json").read_text())
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("shape", "tp_size", "tensor"),
    [
        ({"intermediate_size": 200}, 4, "down_proj"),  # 50 columns a rank: two groups cut in half
        ({"intermediate_size": 180}, 2, "down_proj"),  # 90
        ({"head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 66}, 6, None),
    ],
)
def test_a_cut_through_groups_is_refused_before_any_file(
    students: Students, tmp_path: Path, shape: dict[str, int], tp_size: int, tensor: str | None
) -> None:
    config = read_config(students.make("llama", tied=True, dtype=torch.bfloat16, intermediate_size=192))
    config |= shape
    rows, columns = config["hidden_size"], config["intermediate_size"]
    name = "model.layers.0.mlp.down_proj.weight"
    sparsity = SparsityRecord(pattern=TWO_OF_FOUR, model_type="llama", shapes={name: (rows, columns)})
    settings = Export(tensorrt_llm=TensorRTLLM(tp_size=tp_size))
    if tensor is None:
        exporter_of("tensorrt-llm").check(config, settings, sparsity)  # 192 / 6 = 32 columns a rank
        return
    with pytest.raises(UnsupportedError, match=tensor):
        exporter_of("tensorrt-llm").check(config, settings, sparsity)
    exporter_of("tensorrt-llm").check(config, settings, None)  # a dense one may be cut there


def test_every_family_with_a_checkpoint_has_a_table() -> None:
    architectures = {family.tensorrt_llm.architecture for family in FAMILIES.values() if family.tensorrt_llm}
    assert architectures == set(FIELDS)
