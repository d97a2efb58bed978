"""The shape of every weight that a model must have, by full name."""

from __future__ import annotations

from compressor.models.dims import Dims


def expected_shapes(dims: Dims) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that a model of these dimensions must have, by full name."""
    family, hidden = dims.family, dims.hidden_size
    query, key = dims.num_attention_heads * dims.head_dim, dims.num_key_value_heads * dims.head_dim
    weights: dict[str, tuple[int, ...]] = {
        family.q_proj: (query, hidden),
        family.k_proj: (key, hidden),
        family.v_proj: (key, hidden),
        family.o_proj: (hidden, query),
        family.down_proj: (hidden, dims.intermediate_size),
        family.attention_norm: (hidden,),
        family.mlp_norm: (hidden,),
        **dict.fromkeys(family.mlp_inputs, (dims.intermediate_size, hidden)),
        **dict.fromkeys(family.head_norms, (dims.head_dim,)),
    }
    layer = {f"{name}.weight": shape for name, shape in weights.items()}
    norms = (family.attention_norm, family.mlp_norm) if family.norm_has_bias else ()
    layer |= {f"{name}.bias": (hidden,) for name in norms}
    if family.qkv_has_bias:
        layer |= {f"{family.q_proj}.bias": (query,), f"{family.k_proj}.bias": (key,)}
        layer |= {f"{family.v_proj}.bias": (key,)}
    shapes = {
        f"{family.layers}.{index}.{name}": shape
        for index in range(dims.num_hidden_layers)
        for name, shape in layer.items()
    }
    shapes[f"{family.embedding}.weight"] = (dims.vocab_size, hidden)
    shapes[f"{family.final_norm}.weight"] = (hidden,)
    if family.norm_has_bias:
        shapes[f"{family.final_norm}.bias"] = (hidden,)
    if not dims.tie_word_embeddings:
        shapes[f"{family.lm_head}.weight"] = (dims.vocab_size, hidden)
    return shapes
