"""Which fields of a config.json are computed as they say: transformers' own classes, published configs."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compressor.core.errors import UnsupportedError
from compressor.models.config import fields as config_fields
from compressor.models.config.fields import check_config, layer_types
from compressor.models.config.portable import portable_config
from compressor.models.dims import dims_of_config
from compressor.models.families import FAMILIES
from tests.rope_forms import FIRST_WITH_ROPE_PARAMETERS, GENERATION

WHERE = "config.json"
LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3 = LLAMA_2 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "intermediate_size": 14336,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_3_1_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN_2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_3 = QWEN_2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
    "vocab_size": 151936,
}
NEMOTRON = {
    "architectures": ["NemotronForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "head_dim": 128,
    "hidden_act": "relu2",
    "hidden_size": 3072,
    "initializer_range": 0.0134,
    "intermediate_size": 9216,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "nemotron",
    "norm_eps": 1e-05,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256000,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-2-7b": LLAMA_2,
    "Sheared-LLaMA-1.3B": LLAMA_2
    | {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16}
    | {"num_key_value_heads": 16, "num_hidden_layers": 24, "pad_token_id": 0},
    "LLaMA-2-7B-32K": LLAMA_2 | {"rope_scaling": {"factor": 8.0, "type": "linear"}},
    "TinyLlama-1.1B": LLAMA_2 | {"hidden_size": 2048, "intermediate_size": 5632, "num_key_value_heads": 4},
    "Meta-Llama-3-8B": LLAMA_3,
    "Llama-3.1-8B": LLAMA_3 | {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1_ROPE},
    "Llama-3.2-1B": LLAMA_3
    | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1_ROPE | {"factor": 32.0}}
    | {"tie_word_embeddings": True},
    "Llama-3.1-Minitron-4B-Width": LLAMA_3
    | {"head_dim": 128, "hidden_size": 3072, "intermediate_size": 9216, "rope_scaling": LLAMA_3_1_ROPE}
    | {"max_position_embeddings": 131072, "num_attention_heads": 32},
    "SmolLM2-135M": LLAMA_3
    | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    | {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "vocab_size": 49152}
    | {"num_hidden_layers": 30, "tie_word_embeddings": True, "max_position_embeddings": 8192}
    | {"transformers.js_config": {"dtype": "q4"}, "bos_token_id": 0, "eos_token_id": 0},
    "deepseek-coder-6.7b": LLAMA_2
    | {"rope_theta": 100000, "rope_scaling": {"factor": 4.0, "type": "linear"}, "vocab_size": 32256}
    | {"max_position_embeddings": 16384},
    "DeepSeek-R1-Distill-Llama-8B": LLAMA_3
    | {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1_ROPE, "head_dim": 128},
    "Yi-6B": LLAMA_2
    | {"num_key_value_heads": 4, "rope_theta": 5000000.0, "vocab_size": 64000, "pad_token_id": 0},
    "Mistral-7B-v0.1": MISTRAL,
    "Mistral-7B-v0.3": MISTRAL | {"sliding_window": None, "rope_theta": 1000000.0, "vocab_size": 32768}
    | {"attention_dropout": 0.0, "head_dim": None},
    "Mistral-NeMo-Minitron-8B": MISTRAL
    | {"head_dim": 128, "hidden_size": 4096, "intermediate_size": 11520, "num_hidden_layers": 40}
    | {"sliding_window": None, "vocab_size": 131072},
    "MegaBeam-Mistral-7B": MISTRAL | {"sliding_window": None, "rope_theta": 25000000.0},
    "Qwen2-7B": QWEN_2,
    "Qwen2.5-7B-Instruct-1M": QWEN_2 | {"rope_theta": 10000000.0, "max_position_embeddings": 1010000},
    "Qwen2.5-7B-yarn": QWEN_2
    | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    "DeepSeek-R1-Distill-Qwen-7B": QWEN_2
    | {"use_mrope": False, "sliding_window": 4096, "max_window_layers": 28},
    "Qwen3-8B": QWEN_3,
    "Qwen3-8B-yarn": QWEN_3
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
    | {"max_position_embeddings": 131072},
    "Minitron-4B": NEMOTRON,
    "nemotron-3-8b": {k: v for k, v in NEMOTRON.items() if k != "partial_rotary_factor"}
    | {"kv_channels": 128, "rope_percent": 0.5},
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 331,
}
VOCABULARY = 331


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_without_a_word(name: str) -> None:
    config = PUBLISHED[name]
    dims, warnings = check_config(config, where=WHERE)

    assert warnings == ()
    assert dims.hidden_size == config["hidden_size"]
    assert portable_config(portable_config(config)) == portable_config(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_of_the_installed_class_is_checked_or_known(model_type: str) -> None:
    """transformers' own list of fields: a release that reads a new one fails here."""
    made = CONFIG_MAPPING[model_type]
    names = {name for name in inspect.signature(made.__init__).parameters if name not in ("self", "kwargs")}
    if GENERATION >= FIRST_WITH_ROPE_PARAMETERS:
        names |= {field.name for field in fields(made)}
    names |= {name for name in made().to_dict() if not name.startswith("_")}

    known = config_fields._CHECKED | config_fields._WITHOUT_EFFECT
    assert len(names) > 20
    assert names - known == set()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_the_installed_class(model_type: str) -> None:
    made = CONFIG_MAPPING[model_type]()

    for name, value in FAMILIES[model_type].defaults.items():
        assert getattr(made, name) == value, name
    assert made.hidden_act == FAMILIES[model_type].activation
    theta = made.rope_parameters if GENERATION >= FIRST_WITH_ROPE_PARAMETERS else made.to_dict()
    assert theta["rope_theta"] == 10_000
    assert theta.get("partial_rotary_factor") == FAMILIES[model_type].rotary_fraction


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("hidden_act", None),
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("logit_scale", 0.0625),
        ("logits_scaling", 8.0),
        ("residual_multiplier", 0.22),
        ("embedding_multiplier", 12),
        ("attention_multiplier", 0.015625),
        ("scale_emb", 12),
        ("scale_depth", 1.4),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("clip_qkv", 8.0),
        ("num_local_experts", 8),
        ("num_experts", 64),
        ("n_routed_experts", 64),
        ("query_pre_attn_scalar", 256),
        ("use_qk_norm", True),
        ("qk_layernorm", True),
        ("rope_interleaved", True),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("no_rope_layer_interval", 4),
        ("partial_rotary_factor", 0.5),
        ("partial_rotary_factor", 1e308),
        ("rope_percent", 0.25),
        ("alibi", True),
        ("sliding_window", 4096),
        ("layer_types", ["sliding_attention"] * 4),
        ("attention_chunk_size", 8192),
        ("kv_lora_rank", 512),
        ("use_parallel_residual", True),
        ("attn_temperature_tuning", True),
        ("is_causal", False),
        ("per_layer_config", {"0": {}}),
        ("block_configs", [{}]),
        ("pruned_heads", {"0": [1]}),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", 10**400),
        ("layer_norm_eps", 10**400),
        ("rope_theta", 10**400),
        ("rope_base", -(10**400)),
        ("rope_scaling", {"rope_type": "linear", "factor": 10**400}),
        ("architectures", 5),
        ("architectures", True),
        ("architectures", 10**400),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [7]),
        ("architectures", {}),
        ("tie_word_embeddings", "true"),
        ("max_position_embeddings", "4096"),
        ("hidden_size", 66),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
    ],
)
def test_a_field_that_asks_for_another_computation_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check_config({**TINY, field: value}, where=WHERE)

    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logits_scaling", 1.0),
        ("residual_multiplier", 1),
        ("attention_multiplier", 0.25),
        ("final_logit_softcapping", None),
        ("num_experts", 0),
        ("query_pre_attn_scalar", 16),
        ("use_qk_norm", False),
        ("no_rope_layers", []),
        ("layer_types", ["full_attention"] * 4),
        ("partial_rotary_factor", 1.0),
        ("pretraining_tp", 4),
        ("hidden_act", "swish"),
    ],
)
def test_a_neutral_value_is_not_refused(field: str, value: object) -> None:
    assert check_config({**TINY, field: value}, where=WHERE)[0].hidden_size == 64


@pytest.mark.parametrize("padding", [VOCABULARY, VOCABULARY + 5, -VOCABULARY - 1])
def test_a_padding_id_beyond_the_embedding_is_refused_as_the_class_does(padding: int) -> None:
    with pytest.raises(UnsupportedError, match="pad_token_id"):
        check_config({**TINY, "pad_token_id": padding}, where=WHERE)
    with pytest.raises(AssertionError, match=r"[Pp]adding_idx"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY, pad_token_id=padding))


@pytest.mark.parametrize("padding", [None, -1, 0, VOCABULARY - 1])
def test_a_padding_id_that_the_class_takes_is_taken(padding: int | None) -> None:
    check_config({**TINY, "pad_token_id": padding}, where=WHERE)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY, pad_token_id=padding))


def test_what_transformers_5_reads_as_another_class_is_refused() -> None:
    config = FAMILY_SHAPES["mistral"] | {"layer_types": ["sliding_attention"] * 4, "sliding_window": 8}
    with pytest.raises(UnsupportedError, match="layer_types"):
        check_config(config, where=WHERE)


def test_a_null_where_the_class_wants_a_number_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="head_dim"):
        check_config({**FAMILY_SHAPES["qwen3"], "head_dim": None}, where=WHERE)
    check_config({**TINY, "head_dim": None}, where=WHERE)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("token", [VOCABULARY, 10**9, 10**400, [VOCABULARY], [0, VOCABULARY + 1]])
def test_an_id_that_no_token_has_is_refused(field: str, token: object) -> None:
    with pytest.raises(UnsupportedError, match=field):
        check_config({**TINY, field: token}, where=WHERE)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("token", [None, -1, 0, VOCABULARY - 1, [], [0, VOCABULARY - 1]])
def test_an_id_of_a_token_or_of_none_is_taken(field: str, token: object) -> None:
    assert check_config({**TINY, field: token}, where=WHERE)[1] == ()


def test_other_fields_are_named_in_a_warning() -> None:
    config = {**TINY, "my_note": "x", "some_threshold": 0.3, "architectures": ["Phi3ForCausalLM"]}
    warnings = check_config(config, where=WHERE)[1]

    assert "my_note, some_threshold" in warnings[0]
    assert "Phi3ForCausalLM" in warnings[1]


_FIELDS: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "nemotron": {"hidden_act": "relu2"},
    "qwen3": {"head_dim": 16},
}
FAMILY_SHAPES = {name: {**TINY, "model_type": name, **_FIELDS.get(name, {})} for name in FAMILIES}
# What other architectures, or code beside published weights, call a part of what they compute.
SIGNS: list[tuple[str, object]] = [
    *((name, True) for name in ("use_bias", "lm_head_bias", "bias", "attention_out_bias", "add_bias_linear")),
    *((name, True) for name in ("o_proj_bias", "conv_bias", "enable_bias", "mlp_use_bias", "head_bias")),
    ("no_bias", False),
    *((name, False) for name in ("use_rope", "use_rotary", "use_rotary_embedding", "rotary", "rope")),
    *((name, False) for name in ("use_rotary_position_embeddings", "causal", "scale_attn_weights")),
    *((name, False) for name in ("pre_norm", "do_layer_norm_before", "normalize_before")),
    *((name, 0.25) for name in ("rotary_percentage", "rotary_emb_fraction", "rotary_pct", "rope_percent")),
    *((name, 4) for name in ("rotary_dim", "rotary_ndims", "rope_dim")),
    *((name, 500_000) for name in ("rotary_emb_base", "rope_base", "rope_local_base_freq", "rotary_base")),
    *((name, 2.0) for name in ("rope_scaling_factor", "rope_ratio", "yarn_factor", "rotary_scale_base")),
    *((name, True) for name in ("use_alibi", "rotary_interleaved", "rope_interleave", "use_dynamic_ntk")),
    ("rope_scaling_type", "yarn"),
    ("position_embedding_type", "learned"),
    *((name, True) for name in ("use_learned_position_embeddings", "position_encoding_2d", "use_rel_pos")),
    ("relative_attention_num_buckets", 32),
    *((name, 0.5) for name in ("embedding_scale", "scale_embedding", "lm_head_multiplier")),
    ("mlp_alpha_factor", 0.5),
    *((name, 0) for name in ("residual_multiplier", "logit_scale", "logits_scaling")),
    *((name, True) for name in ("scale_attn_by_inverse_layer_idx", "normalize_embedding", "mup_enabled")),
    ("dim_model_base", 256),
    ("softmax_scale", 1.0),
    ("attention_multiplier", 1.0),
    *((name, 7.0) for name in ("swiglu_limit", "activation_clip", "attn_logit_cap", "qkv_clip")),
    *((name, True) for name in ("parallel_attn", "use_parallel_block", "gptj_residual")),
    *((name, True) for name in ("apply_residual_connection_post_layernorm", "use_post_layernorm")),
    *((name, True) for name in ("layernorm_embedding", "attn_output_gate", "bidirectional")),
    ("attention_k_eq_v", True),
    ("norm_type", "layernorm"),
    ("hidden_activation_function", "gelu"),
    ("ffn_act_fn", {"name": "gelu"}),
    *((name, 128) for name in ("kv_channels", "v_head_dim", "head_size", "query_pre_attn_scalar")),
    ("norm_epsilon", 0.5),
    ("layer_norm_epsilon", 0.5),
    ("tie_embeddings", True),
    *((name, 2) for name in ("moe_num_layers", "num_kv_shared_layers", "index_topk", "swa_layers")),
    ("num_loops", 2),
    ("window_size", 128),
    ("attention_types", [["global", "local"]]),
    ("is_encoder_decoder", True),
    ("use_sliding_window", True),
    ("quantization", {"bits": 4}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_a_scaled_rope_is_refused_where_the_class_takes_it_for_another(kind: str) -> None:
    scaling = {"rope_type": kind, "factor": 4.0}
    with pytest.raises(UnsupportedError, match="rope_scaling"):
        check_config({**FAMILY_SHAPES["phi3"], "rope_scaling": scaling}, where=WHERE)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(("field", "value"), SIGNS)
def test_a_sign_of_another_architecture_is_refused_in_every_family(
    field: str, value: object, model_type: str
) -> None:
    if field == "use_sliding_window" and FAMILIES[model_type].window_by_layer:
        pytest.skip("this family's class reads it")
    with pytest.raises(UnsupportedError) as caught:
        check_config({**FAMILY_SHAPES[model_type], field: value}, where=WHERE)

    assert caught.value.where == f"{WHERE}: {field}"
    assert caught.value.exit_code == 3
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, False) for name in ("use_bias", "lm_head_bias", "use_alibi", "use_parallel_residual")),
        *((name, True) for name in ("use_rope", "rotary", "no_bias", "causal", "pre_norm")),
        *((name, 0) for name in ("num_experts", "final_logit_softcapping", "clip_qkv", "kv_lora_rank")),
        *((name, 1.0) for name in ("embedding_multiplier", "logit_scale", "rope_scaling_factor")),
        ("rope_ratio", 1),
        *((name, 16) for name in ("kv_channels", "head_size", "v_head_dim")),
        *((name, 0.25) for name in ("attention_multiplier", "softmax_scale")),
        *((name, 10_000.0) for name in ("rotary_emb_base", "rope_base")),
        ("position_embedding_type", "rope"),
        ("tie_embeddings", False),
        ("untie_embeddings_and_output_weights", True),
        ("rope_scaling_type", "default"),
        ("use_sliding_window", False),
        ("quantization", None),
    ],
)  # fmt: skip
def test_a_sign_with_a_neutral_value_passes_without_a_word(
    field: str, value: object, model_type: str
) -> None:
    assert check_config({**FAMILY_SHAPES[model_type], field: value}, where=WHERE)[1] == ()


def test_a_field_of_another_runtime_alone_is_warned_of() -> None:
    """Qwen2.5-1M's: vLLM attends in chunks beyond the trained length, transformers never does."""
    found = {"chunk_size": 262_144, "local_size": 8192, "original_max_position_embeddings": 262_144}
    config = {**FAMILY_SHAPES["qwen2"], "dual_chunk_attention_config": found}
    [warning] = check_config(config, where=WHERE)[1]
    assert "dual_chunk_attention_config" in warning


@pytest.mark.parametrize(
    ("model_type", "field", "right", "wrong"),
    [
        ("qwen2", "qkv_bias", True, False),
        ("llama", "qkv_bias", False, True),
        ("qwen3", "use_qk_norm", True, False),
        ("mistral", "use_qk_norm", False, True),
        ("nemotron", "rotary_percentage", 0.5, 1.0),
        ("nemotron", "rotary_dim", 8, 16),
        ("llama", "rotary_dim", 16, 8),
        ("llama", "rotary_pct", 1.0, 0.5),
        ("llama", "norm_eps", 1e-6, 1e-5),
        ("nemotron", "rms_norm_eps", 1e-5, 1e-6),
        ("nemotron", "layernorm_zero_centered_gamma", True, False),
        ("qwen2", "layernorm_zero_centered_gamma", False, True),
        ("nemotron", "norm_type", "layernorm1p", "rmsnorm"),
        ("llama", "norm_type", "RMSNorm", "layernorm1p"),
        ("nemotron", "activation", "squared-relu", "silu"),
        ("qwen3", "activation", "SwiGLU", "relu2"),
        ("nemotron", "swiglu", False, True),
        ("llama", "use_swiglu", True, False),
        ("nemotron", "norm_bias", True, False),
        ("llama", "rms_norm", True, False),
    ],
)
def test_a_sign_is_held_against_what_the_family_computes(
    model_type: str, field: str, right: object, wrong: object
) -> None:
    config = FAMILY_SHAPES[model_type]
    assert check_config({**config, field: right}, where=WHERE)[1] == ()
    with pytest.raises(UnsupportedError, match=field):
        check_config({**config, field: wrong}, where=WHERE)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 8, "use_sliding_window": False},
        {"sliding_window": 8, "max_window_layers": 2},
        {"sliding_window": None, "use_sliding_window": True},
    ],
)
def test_mistral_has_its_window_in_every_layer_or_in_none(changes: dict[str, Any]) -> None:
    """Its class knows neither the switch nor the first layer."""
    with pytest.raises(UnsupportedError, match="window"):
        check_config(FAMILY_SHAPES["mistral"] | changes, where=WHERE)
    whole = FAMILY_SHAPES["mistral"] | {"sliding_window": 8, "use_sliding_window": True}
    assert check_config(whole | {"max_window_layers": 0}, where=WHERE)[1] == ()


@pytest.mark.parametrize(
    "name",
    [
        *("my_note", "fp16", "use_flash_attn", "seq_length", "context_window", "bias_dropout_fusion"),
        *("init_scale", "loss_scale", "clip_grad", "emb_dropout", "n_positions", "vocab_size_multiple"),
    ],
)
def test_a_field_of_another_kind_is_only_named(name: str) -> None:
    warnings = check_config({**TINY, name: 4096}, where=WHERE)[1]
    assert len(warnings) == 1
    assert name in warnings[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 4.0),
        ("vocab_size", 10**12),
        ("vocab_size", "331"),
        ("vocab_size", -1),
        ("hidden_size", 10**400),
        ("intermediate_size", 0),
        ("head_dim", [16]),
        ("num_attention_heads", {}),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_counted(field: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=f"no usable {field}"):
        dims_of_config({**TINY, field: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 66},
        {"hidden_size": 72},
        {"hidden_size": 66, "head_dim": 16},
        {"hidden_size": 66, "head_dim": 16, "model_type": "mistral"},
        {"hidden_size": 66, "head_dim": 16, "model_type": "qwen3"},
        {"hidden_size": 66, "head_dim": 16, "model_type": "nemotron", "hidden_act": "relu2"},
    ],
)
@pytest.mark.skipif(GENERATION < FIRST_WITH_ROPE_PARAMETERS, reason="the classes refuse since 5")
def test_a_shape_is_refused_where_the_class_refuses_it(changes: dict[str, Any]) -> None:
    config = TINY | changes
    fields_of = {name: value for name, value in config.items() if name != "model_type"}

    def refuses(work: Any) -> bool:
        try:
            work()
        except Exception:  # noqa: BLE001 - the class raises what it likes
            return True
        return False

    by_class = refuses(lambda: AutoConfig.for_model(config["model_type"], **fields_of))
    assert refuses(lambda: check_config(config, where=WHERE)) == by_class


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 8},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1},
        {"use_sliding_window": True},
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1},
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ],
)
def test_windows_by_layer_are_those_of_the_class(model_type: str, changes: dict[str, Any]) -> None:
    config = {**TINY, "model_type": model_type, "head_dim": 16, **changes}
    fields_of = {name: value for name, value in config.items() if name != "model_type"}
    made = AutoConfig.for_model(model_type, **fields_of)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    dims = check_config(config, where=WHERE)[0]

    found = layer_types(config, dims) or ("full_attention",) * 4
    assert list(found) == made.layer_types
    has_window = [layer.self_attn.sliding_window is not None for layer in model.model.layers]
    assert [kind == "sliding_attention" for kind in found] == has_window


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["sliding_attention"] * 4},
        {"layer_types": ["chunked_attention"] * 4, "use_sliding_window": True, "sliding_window": 8},
        {"layer_types": ["full_attention"] * 3},
        {"use_sliding_window": True, "sliding_window": -1},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": "2"},
    ],
)
def test_windows_that_the_class_cannot_have_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        check_config({**TINY, "model_type": "qwen2", **changes}, where=WHERE)
