"""Names by which other architectures change a computation: refused unless the value is neutral."""

from __future__ import annotations

import pytest

from compressor.core.errors import UnsupportedError
from compressor.models.config.fields import check_config
from compressor.models.families import FAMILIES
from tests.unit.models.config.published import FAMILY_SHAPES

WHERE = "config.json"
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
