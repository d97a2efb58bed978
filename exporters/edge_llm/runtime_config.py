"""The `config.json` beside TensorRT-Edge-LLM's graph: what its runtime reads of the model's geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import CONFIG_FILE, read_config
from compressor.models.config.class_defaults import value_of
from compressor.models.config.portable import portable_config
from compressor.models.dims import SHAPE_FIELDS, Dims, dims_of_config
from compressor.models.tokenizer_files import GENERATION_CONFIG_FILE
from exporters.checks.equality import expect_equal_fields

VERSION_FIELD, MODEL_FIELD, CACHE_FIELD = "edgellm_version", "model", "kv_cache_dtype"
EPSILON_FIELD = "rms_norm_eps"
CACHE_DTYPES = {False: "fp16", True: "fp8"}
# What other kinds of models switch on.
_PLAIN: dict[str, object] = {
    "spec_decode_type": "none",
    "engine_role": "llm",
    "num_deepstack_features": 0,
    "use_vision_bidirectional_attention": False,
    "ple_enabled": False,
    "num_ple_inputs": 0,
    "ple_hidden_size": 0,
    "partial_rotary_factor": 1.0,
}


def read_runtime_config(directory: Path) -> dict[str, Any]:
    """Read it; a VerificationError where it is missing or no JSON mapping."""
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise VerificationError("the runtime's config is missing", where=str(file))
    return read_json_mapping(file, what="the runtime's config")


def dims_of_runtime(config: dict[str, Any], *, tied: bool) -> Dims:
    """The dimensions that it states; the file does not say whether the LM head is the embedding."""
    stated = {name: config.get(name) for name in SHAPE_FIELDS}
    return dims_of_config({**stated, "model_type": config.get(MODEL_FIELD), "tie_word_embeddings": tied})


def expected_config(student: Path, *, version: object, fp8_kv_cache: bool) -> dict[str, object]:
    """What the runtime must be told of the student: its shape, rope, norms, cache and end tokens."""
    config = read_config(student)
    dims, rope = dims_of_config(config), portable_config(config)
    ends = _end_tokens(config)
    generation = student / GENERATION_CONFIG_FILE
    if generation.is_file():
        ends += _end_tokens(read_json_mapping(generation, what=GENERATION_CONFIG_FILE))
    return {
        **_PLAIN,
        MODEL_FIELD: dims.model_type,
        VERSION_FIELD: version,
        **{name: getattr(dims, name) for name in SHAPE_FIELDS},
        "max_position_embeddings": value_of(config, "max_position_embeddings"),
        "rope_theta": rope.get("rope_theta"),
        "rope_scaling": _rope_scaling(rope),
        EPSILON_FIELD: value_of(config, EPSILON_FIELD),
        "attention_scaling": dims.head_dim**-0.5,
        CACHE_FIELD: CACHE_DTYPES[fp8_kv_cache],
        "eos_token_id": list(dict.fromkeys(ends)) or None,
    }


def check_runtime_config(directory: Path, student: Path, *, fp8_kv_cache: bool) -> str:
    """Refuse a config that tells the runtime of another model than the student."""
    found = read_runtime_config(directory)
    expected = expected_config(student, version=found.get(VERSION_FIELD), fp8_kv_cache=fp8_kv_cache)
    scaling = found.get("rope_scaling")
    if isinstance(scaling, dict):  # a rope's base may be repeated there, and its kind under both names
        repeated = {
            "rope_theta": expected["rope_theta"],
            "type": scaling.get("rope_type"),
            "partial_rotary_factor": 1.0,
        }
        plain = {name: value for name, value in scaling.items() if repeated.get(name, _ABSENT) != value}
        found = {**found, "rope_scaling": None if plain == {"rope_type": "default"} else plain}
    what = "the runtime's config differs from the student's"
    expect_equal_fields(what, expected, found, where=f"{directory / CONFIG_FILE}: ")
    return "shape, rope, norms, cache and end tokens equal"


_ABSENT = object()


def _rope_scaling(rope: dict[str, Any]) -> dict[str, object] | None:
    """The scaling under one name of its kind; None for none."""
    scaling = dict(rope.get("rope_scaling") or {})
    scaling.pop("rope_theta", None)
    kind = scaling.pop("type", None)
    scaling.setdefault("rope_type", kind)
    return None if scaling["rope_type"] in (None, "default") else scaling


def _end_tokens(config: dict[str, Any]) -> list[int]:
    found = config.get("eos_token_id")
    return [found] if isinstance(found, int) else list(found or [])
