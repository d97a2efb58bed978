"""Names by which other architectures change a computation, and the values that change nothing.

A model class ignores a field that it does not know. Where such a field's name stands for a part of the
computation in another architecture (experts, a bias, a multiplier, a soft cap, another rotation), the
weights may have been trained with it, so its value must be the one that the class computes by anyway.
"""

from __future__ import annotations

import math
import re

from compressor.models.config.rope import Rope, is_number
from compressor.models.dims import Dims

EPSILONS = frozenset(
    {
        *("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon"),
        *("layernorm_eps", "norm_epsilon", "rms_eps", "rms_norm_epsilon", "layer_norm_rms_eps"),
    }
)
_FRACTIONS = frozenset(
    {
        *("rope_percent", "rope_pct", "rope_fraction", "rotary_pct", "rotary_percent", "rotary_percentage"),
        *("rotary_fraction", "rotary_factor", "rotary_emb_fraction"),
    }
)
_ROTATED = frozenset({"rotary_dim", "rotary_dims", "rotary_ndims", "rotary_emb_dim", "rope_dim"})
_BASES = frozenset(
    {
        *("rope_base", "rope_freq_base", "rotary_base", "rotary_emb_base", "rotary_embedding_base"),
        *("rope_local_base_freq", "local_rope_theta", "global_rope_theta", "rope_embedding_base"),
    }
)
_HEAD_SIZES = frozenset(
    {
        *("query_pre_attn_scalar", "kv_channels", "attention_head_size", "attention_head_dim", "head_size"),
        *("qk_head_dim", "v_head_dim", "d_head", "dim_head", "d_kv"),
    }
)
_ATTENTION_SCALES = frozenset({"attention_multiplier", "softmax_scale"})
_TIES = re.compile(r"^(tie|tied|share)_(\w+_)?(embed\w*|lm_head)(_\w+)?$")
_UNTIES = re.compile(r"^untie_(\w+_)?embed\w*$")
_ACTIVATIONS = re.compile(
    r"^(hidden_activation(_function)?|activation(_function|_type|_fn)?|act_fn|mlp_hidden_act|afn|act_type"
    r"|(ffn?|mlp|dense|feed_?forward)_act(ivation)?(_fn|_function|_type)?|mlp_type|glu_type|ffn_type)$"
)
_NORM_KINDS = re.compile(r"^_?(norm|layer_?norm|normali[sz]ation)(_type|_class|_kind|_name)?$")
_NORM_OFFSETS = re.compile(r"unit_offset|zero_centered|layernorm_1p|norm_(add|plus)_one")
_HEAD_NORMS = re.compile(r"qk_?(layer)?_?norm|(^|_)[qk]_norm|query_key_norm|qk_ln")
_QKV_BIASES = re.compile(r"qkv_(\w+_)?bias|bias_qkv")
_NORM_BIASES = re.compile(r"norm_bias$")
_BIASES = re.compile(r"(^|_)bias(es)?$|add_bias_|(use|with|enable)_bias")
# What the classes of every family do; true says so.
_ALWAYS = re.compile(
    r"^((use|apply|enable|with|is)_)?(rope|rotary)((_emb|_embeddings?|_pos|_position)+\w*)?$"
    r"|^(pre_norm|pre_layer_?norm|do_layer_norm_before|normalize_before|scale_attn_weights|causal)$"
    r"|^((layer_?)?norm_)?(elementwise_)?affine$|^layer_?norm_elementwise_affine$|^no_bias$"
    r"|^final_(layer_?)?norm$"
)
_RMS = re.compile(r"^(use_)?rms_?norm$")
_GATED = re.compile(r"^((use|is)_)?(swiglu|glu|gated_mlp|gated_linear_unit|gated_ffn)$")

_NONE: tuple[object, ...] = (False, "", "none", [], {})
_ONE = (1,)
_ZERO = (0,)
_SQUARED_RELU = ("squared_relu", "relu_squared")
_FULL = ("full", "full_attention", "softmax", "causal", "mha", "gqa")
# Pattern -> values without effect, beside those of `_NONE`. The first that matches decides.
_SIGNS: tuple[tuple[re.Pattern[str], tuple[object, ...]], ...] = tuple(
    (re.compile(pattern), neutral)
    for pattern, neutral in (
        (r"expert|(^|_)moe(_|$)|router|routed|scoring_func|topk_(group|method)|mlp_only_layers", _ZERO),
        (r"sparse_step|first_k_dense|shared_intermediate", _ZERO),
        (r"soft_?cap|logits?_cap|^clip_(?!grad)|_clip$|clipped|(^|_)clamp|swiglu_(limit|alpha)", _ZERO),
        (r"rope_(interleaved?|traditional)|mrope|alibi|xpos|ntk|logn|(^|_)no_?rope|nope", _ZERO),
        (r"(relative|rel)_(att|bias|pos)|position_bias", _ZERO),
        (r"^(?!(\w+_)?(max|num)_)(\w+_)?pos(ition(al)?)?_(emb|enc)", ("rope", "rotary")),
        (r"(learned|absolute|abs)_pos", ()),
        (r"sliding|(?<!context_)window|(^|_)swa(_|$)|attention_chunk|chunked", _ZERO),
        (r"local_(att|layer)|global_att|full_att|num_global_|hybrid|block_types?$|layers?_block", _ZERO),
        (
            r"(?<!chunk_)(attention|attn)_(types?|layers?|layer_\w+|config|pattern)$|layer_types|layer_pattern",
            _FULL,
        ),
        (r"(q|kv|o)_lora_rank|qk_(rope|nope)_head_dim|attention_k_eq_v|index_(topk|n_heads|head_dim)", _ZERO),
        (r"kv_shared|share_kv|(^|_)cla(_|$)|lambda_std|differential|value_residual|compress_rate", _ZERO),
        (r"parallel_(residual|attn|attention|blocks?|layers?|mlp)|gptj_residual|new_decoder_arch", ()),
        (r"post_(layer_?)?norm|post_ln|sandwich_norm|norm_after|double_norm|peri_norm|deep_?norm", ()),
        (r"residual_connection_post|remove_final|emb\w*_(layer_?)?norm|norm\w*_emb", ()),
        (r"attn_temperature|attention_temperature|floor_scale|attn_scale|attention_(sink|scale)", ()),
        (r"(attn|attention|head|output)_gate|gated_att|^gating$|altup|laurel|hyper_conn|(^|_)hc_", ()),
        (r"per_layer|layer_config|block_config|mamba|(^|_)ssm(_|$)|linear_(attn|conv|key|value|num)", ()),
        (r"(^|_)conv(olution)?\d*d?(_|$)|recurr|(^|_)lru_|sparsity_pattern|ngram", _ZERO),
        (r"layer_(sharing|repeat|loop)|share_layers?$|num_loops|early_exit|skip_layers|exit_layer", _ZERO),
        (r"bidirectional|(vision|audio|text)_config|prefix_lm|(^|_)mup(_|$)|dim_model_base", ()),
        (r"(^|_)quant(ization|ize|ized)?(_config)?$|bitnet|(weight|act(ivation)?)_bits", ()),
        (r"(^|_)(rope|rotary|yarn)(_|$)", (*_ONE, "default")),
        (r"multiplier|(^|_)logits?_(scal|div)|scale_depth|(alpha|beta)_factor|residual_(alpha|weight)", _ONE),
        (r"^(?!init|loss|grad|lora)(\w+_)?(re)?scal(e|ed|es|ing)(_|$)", _ONE),
    )
)


def neutral_values(name: str, dims: Dims, rope: Rope, epsilon: float) -> tuple[object, ...] | None:
    """The values of a field, unread by the class, with which a model computes what it computes without it.

    `rope` is what the class computes, `epsilon` what its norms add. None for a name that stands for no part
    of a computation.
    """
    stated = _stated(name, dims, rope, epsilon)
    if stated is not None:
        return (stated,)
    if _ACTIVATIONS.match(name):
        gated = ("swish", "swiglu", "gated", "gated_mlp", "glu")
        return (dims.family.activation, *(gated if dims.family.gated_mlp else _SQUARED_RELU))
    if _NORM_KINDS.match(name):
        return ("layernorm1p",) if dims.family.norm_has_bias else ("rmsnorm", "rms", "llamarmsnorm")
    return next((_NONE + neutral for pattern, neutral in _SIGNS if pattern.search(name)), None)


def is_one_of(value: object, values: tuple[object, ...]) -> bool:
    """Whether a value is among others; true is not 1, and names are compared without case and separators."""
    return any(_is_same(value, other) for other in values)


def _stated(name: str, dims: Dims, rope: Rope, epsilon: float) -> bool | float | None:
    """What a field must say that has another name for something the class is told or does."""
    fraction = 1.0 if rope.fraction is None else rope.fraction
    numbers: tuple[tuple[frozenset[str], float], ...] = (
        (EPSILONS, epsilon),
        (_FRACTIONS, fraction),
        (_ROTATED, int(dims.head_dim * fraction)),
        (_BASES, rope.theta),
        (_HEAD_SIZES, dims.head_dim),
        (_ATTENTION_SCALES, dims.head_dim**-0.5),
    )
    for names, number in numbers:
        if name in names:
            return number
    family = dims.family
    claims = (
        (_TIES, dims.tie_word_embeddings),
        (_UNTIES, not dims.tie_word_embeddings),
        (_NORM_OFFSETS, family.norm_offset != 0),
        (_HEAD_NORMS, family.has_head_norms),
        (_ALWAYS, True),
        (_RMS, not family.norm_has_bias),
        (_GATED, family.gated_mlp),
        (_QKV_BIASES, family.qkv_has_bias),
        (_NORM_BIASES, family.norm_has_bias),
        (_BIASES, False),
    )
    return next((claim for pattern, claim in claims if pattern.search(name)), None)


def _is_same(value: object, other: object) -> bool:
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if is_number(value) and is_number(other):
        return math.isclose(value, other, rel_tol=1e-6)
    if isinstance(value, str) and isinstance(other, str):
        return _plain(value) == _plain(other)
    return type(value) is type(other) and value == other


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).lower()
