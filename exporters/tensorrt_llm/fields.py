"""What TensorRT-LLM 1.2 reads from a checkpoint's `config.json`: one table, made from its readers' side.

`PretrainedConfig` and its subclasses take every key of the file as an argument: `LLaMAConfig` for Llama and
Mistral, `QWenConfig` for Qwen2 and Qwen3, `GPTConfig` for Nemotron. Keys they do not know become attributes
with a warning, so a misspelt field is a field left out; and some attributes are read without any default
(`seq_length` and `qwen_type` by the Qwen decoder layer), so a missing one stops the engine's build.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE

POSITION_EMBEDDING, LOGITS_DTYPE = "rope_gpt_neox", "float32"
# What NVIDIA's converter writes for a Qwen config without the field. Only log-n attention uses it, which
# no family here has.
SEQ_LENGTH = 8192
QUANTISED = "FP8"
EXCLUDED = ["lm_head"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One key of the file: types of JSON values that the reader can use, and what it does with them.

    It must be there if it is `written`: the reader has no default, or one that means another model. Of a
    field that is not written `default` is the only value that may be there, because another would switch on
    what none of these families has. `only` are the values that are right for every checkpoint written here;
    none: it depends on the model.
    """

    kinds: tuple[type, ...]
    use: str
    written: bool = True
    default: object = None
    only: tuple[object, ...] = ()


_NONE = type(None)
_NUMBER = (int, float)


def _unread(default: object, use: str) -> Field:
    kinds = _NUMBER if isinstance(default, float) else (type(default),)
    return Field(kinds=kinds, use=use, written=False, default=default)


_COMMON: dict[str, Field] = {
    "architecture": Field(kinds=(str,), use="chooses the model's class"),
    "dtype": Field(kinds=(str,), use="of everything not quantised", only=("float16", "bfloat16")),
    "logits_dtype": Field(kinds=(str,), use="of the engine's output", only=(LOGITS_DTYPE,)),
    "hidden_size": Field(kinds=(int,), use="width of the residual stream"),
    "num_hidden_layers": Field(kinds=(int,), use="layers of all pipeline stages together"),
    "num_attention_heads": Field(kinds=(int,), use="query heads of all ranks together"),
    "num_key_value_heads": Field(kinds=(int,), use="defaults to the query heads"),
    "head_size": Field(kinds=(int,), use="defaults to hidden_size / num_attention_heads"),
    "intermediate_size": Field(kinds=(int,), use="defaults to 4 hidden_size"),
    "vocab_size": Field(kinds=(int,), use="rows of embedding and LM head, padded to a multiple of tp_size"),
    "max_position_embeddings": Field(kinds=(int,), use="length of the rope tables; default max_seq_len"),
    "hidden_act": Field(kinds=(str,), use="of the MLP; defaults to gelu"),
    "norm_epsilon": Field(kinds=_NUMBER, use="of every norm; defaults to 1e-5"),
    "position_embedding_type": Field(
        kinds=(str,), use="defaults to learned_absolute, which has other tensors", only=(POSITION_EMBEDDING,)
    ),
    "rotary_base": Field(kinds=_NUMBER, use="defaults to 10000"),
    "rotary_scaling": Field(kinds=(dict, _NONE), use="type or rope_type, factor and the type's parameters"),
    "use_parallel_embedding": Field(kinds=(bool,), use="whether ranks share the embedding", only=(True,)),
    "embedding_sharding_dim": Field(kinds=(int,), use="along rows (0) or columns (1)", only=(0,)),
    "mapping": Field(kinds=(dict,), use="the ranks"),
    "quantization": Field(kinds=(dict,), use="which linear layers and caches are quantised"),
    "rotary_embedding_dim": _unread(None, "defaults to head_size times rotary_pct"),
    "qk_layernorm": _unread(False, "norms of query and key heads; Qwen3's come with qwen_type"),  # noqa: FBT003
    "runtime_defaults": _unread(None, "defaults of the runtime, such as beam widths"),
    "is_pruned": _unread(False, "weights stripped from the checkpoint"),  # noqa: FBT003
    "moe": _unread(None, "experts"),
}
_LLAMA: dict[str, Field] = {
    "attn_bias": Field(kinds=(bool,), use="bias of q, k and v; defaults to false", only=(False,)),
    "mlp_bias": Field(kinds=(bool,), use="bias of the MLP; defaults to false", only=(False,)),
    "residual_mlp": _unread(False, "a second MLP beside attention"),  # noqa: FBT003
    "remove_duplicated_kv_heads": _unread(False, "halves the key/value heads"),  # noqa: FBT003
    "embedding_multiplier": _unread(1.0, "scales the embeddings"),
    "attention_multiplier": _unread(1.0, "scales the queries"),
    "residual_multiplier": _unread(1.0, "scales what attention and MLP add"),
    "output_multiplier_scale": _unread(1.0, "scales the logits"),
}
_QWEN: dict[str, Field] = {
    "attn_bias": Field(kinds=(bool,), use="bias of q, k and v; defaults to true"),
    "mlp_bias": Field(kinds=(bool,), use="bias of the MLP; defaults to false", only=(False,)),
    "qwen_type": Field(kinds=(str,), use="read without a default: norms of heads, experts, MLP width"),
    "seq_length": Field(kinds=(int,), use="read without a default: length of log-n attention"),
    "use_logn_attn": _unread(False, "scales queries beyond seq_length"),  # noqa: FBT003
    "num_labels": _unread(1, "of a classifier's head"),
}
_GPT: dict[str, Field] = {
    "gpt_variant": Field(kinds=(str,), use="defaults to gpt2", only=("nemotron",)),
    "bias": Field(kinds=(bool,), use="bias of every linear layer; defaults to true", only=(False,)),
    "rotary_pct": Field(kinds=_NUMBER, use="rotated part of every head; defaults to 1"),
    "q_scaling": _unread(1.0, "divides the attention scores"),
    "embedding_scale": _unread(None, "scales the embeddings"),
    "apply_query_key_layer_scaling": _unread(False, "divides scores by the layer's number"),  # noqa: FBT003
    "inner_layernorm": _unread(False, "norms inside attention and MLP"),  # noqa: FBT003
    "norm_before_bmm1": _unread(False, "scales queries before the scores"),  # noqa: FBT003
}
_MAPPING: dict[str, Field] = {
    "world_size": Field(kinds=(int,), use="number of rank files"),
    "tp_size": Field(kinds=(int,), use="ranks that share every layer"),
    "pp_size": Field(kinds=(int,), use="pipeline stages"),
    "cp_size": _unread(1, "ranks that share a sequence"),
}
_QUANTIZATION: dict[str, Field] = {
    "quant_algo": Field(kinds=(str, _NONE), use="of the decoder's linear layers", only=(None, QUANTISED)),
    "kv_cache_quant_algo": Field(kinds=(str, _NONE), use="of keys and values", only=(None, QUANTISED)),
    "exclude_modules": Field(kinds=(list, _NONE), use="patterns of layers left alone", written=False),
    "group_size": _unread(128, "of blockwise formats"),
    "smoothquant_val": _unread(0.5, "of SmoothQuant"),
    "clamp_val": _unread(None, "of rowwise FP8"),
    "use_meta_recipe": _unread(False, "of rowwise FP8"),  # noqa: FBT003
    "has_zero_point": _unread(False, "of blockwise formats"),  # noqa: FBT003
    "pre_quant_scale": _unread(False, "of AWQ"),  # noqa: FBT003
}

FIELDS: dict[str, dict[str, Field]] = {
    "LlamaForCausalLM": _COMMON | _LLAMA,
    "MistralForCausalLM": _COMMON | _LLAMA,
    "Qwen2ForCausalLM": _COMMON | _QWEN,
    "Qwen3ForCausalLM": _COMMON | _QWEN,
    "NemotronForCausalLM": _COMMON | _GPT,
}


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuse (VerificationError) a config that its readers would refuse, or read as another model."""
    architecture = config.get("architecture")
    if architecture not in FIELDS:
        raise VerificationError(
            "the checkpoint's architecture is unknown",
            where=f"{CONFIG_FILE}: architecture",
            expected=" or ".join(FIELDS),
            found=architecture,
        )
    _check(config, FIELDS[architecture], "")
    _check(config["mapping"], _MAPPING, "mapping.")
    quantization = config["quantization"]
    _check(quantization, _QUANTIZATION, "quantization.")
    excluded, expected = quantization.get("exclude_modules"), EXCLUDED if quantization["quant_algo"] else None
    if excluded != expected:
        raise _wrong("quantization.exclude_modules", expected, excluded)
    ranks = config["mapping"]
    if ranks["world_size"] != ranks["tp_size"] * ranks["pp_size"] or ranks["world_size"] < 1:
        raise _wrong("mapping.world_size", "tp_size times pp_size, at least 1", ranks["world_size"])


def _check(found: Mapping[str, Any], fields: Mapping[str, Field], prefix: str) -> None:
    for name, field in fields.items():
        if name not in found:
            if field.written:
                raise VerificationError(
                    "the checkpoint's config lacks a field",
                    where=f"{CONFIG_FILE}: {prefix}{name}",
                    expected=field.use,
                    hint="export again",
                )
            continue
        value = found[name]
        if not _is_of(value, field.kinds):
            raise _wrong(prefix + name, " or ".join(_word(kind) for kind in field.kinds), repr(value))
        if field.only and value not in field.only:
            raise _wrong(prefix + name, " or ".join(map(str, field.only)), value)
        if not field.written and name != "exclude_modules" and value != field.default:
            raise _wrong(prefix + name, field.default, value)
    unknown = sorted(set(found) - set(fields))
    if unknown:
        raise VerificationError(
            "TensorRT-LLM does not read this field of the checkpoint's config",
            where=f"{CONFIG_FILE}: {prefix}{unknown[0]}",
            expected="no such field",
        )


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether JSON's value has one of these types; true and false are no numbers."""
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def _word(kind: type) -> str:
    return {_NONE: "null", dict: "an object", list: "a list", int: "an integer"}.get(kind, kind.__name__)


def _wrong(name: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        "the checkpoint's config says something else",
        where=f"{CONFIG_FILE}: {name}",
        expected=expected,
        found=found,
        hint="export again",
    )
