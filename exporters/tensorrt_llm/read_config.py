"""The config of a TensorRT-LLM checkpoint, read back as the Hugging Face config that it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.config.portable import portable_config
from compressor.models.families import FAMILIES, Family
from exporters.checks.equality import expect_equal
from exporters.tensorrt_llm.fields import check_fields


def read_trtllm_config(directory: Path) -> dict[str, Any]:
    """The config as it is written; a UsageError where there is no checkpoint.

    A VerificationError when it is no mapping, or its readers would refuse or misread it.
    """
    config = read_config(directory, kind="TensorRT-LLM")
    check_fields(config)
    return config


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family that is written as this architecture."""
    for family in FAMILIES.values():
        if family.tensorrt_llm is not None and family.tensorrt_llm.architecture == raw["architecture"]:
            return family
    raise VerificationError(
        "the checkpoint's architecture is unknown", where="architecture", found=raw["architecture"]
    )


def huggingface_config(raw: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The Hugging Face config that the checkpoint's own says, the LM head always apart."""
    facts = family.tensorrt_llm
    assert facts is not None
    for field, value in facts.config:
        expect_equal("the checkpoint's config says something else", value, raw.get(field), where=field)
    scaling = raw["rotary_scaling"]
    names = (
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"),
        *("intermediate_size", "vocab_size", "max_position_embeddings"),
    )
    config = {
        "model_type": family.model_type,
        **{name: raw.get(name) for name in names},
        "head_dim": raw["head_size"],
        facts.norm_epsilon: raw.get("norm_epsilon"),
        "hidden_act": dict([facts.activation[::-1]]).get(str(raw.get("hidden_act"))),
        "rope_theta": raw["rotary_base"],
        "rope_scaling": scaling,
        # Beside it, because transformers 4.57 reads no scaling of some families, and 5 does.
        "rope_parameters": {"rope_theta": raw["rotary_base"], **(scaling or {"rope_type": "default"})},
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    if facts.writes_rotary_fraction:
        config["partial_rotary_factor"] = raw.get("rotary_pct")
    if facts.writes_seq_length:
        config["seq_length"] = raw["seq_length"]
    both = portable_config(config)
    if facts.writes_rotary_fraction:
        both["rope_parameters"] = {**both["rope_parameters"], "partial_rotary_factor": raw.get("rotary_pct")}
    return both
