"""Whether every field of a `config.json` that changes the computation means what this project computes.

The truth is what the model classes of transformers 4.57 and 5 read. A field of theirs is checked by its
value. A field that they do not read changes nothing in plain transformers; but a name that another
architecture gives to a part of its computation (experts, a multiplier, a soft cap, its own norms) says
that the weights were trained with it, so such a field is refused unless its value is neutral. The rest is
named in a warning, except what is known to be without effect.
"""

from __future__ import annotations

from collections.abc import Mapping

from compressor.core.errors import UnsupportedError
from compressor.models.config.rope import FRACTION, ORIGINAL, PARAMETERS, SCALING, THETA, is_number, rope_of
from compressor.models.config.signs import EPSILONS, is_one_of, neutral_values
from compressor.models.dims import Dims, check_shape, dims_of_config
from compressor.models.families import Family

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW, LAYER_TYPES = "sliding_window", "layer_types"
_WINDOW_FIELDS = (WINDOW, "use_sliding_window", "max_window_layers", LAYER_TYPES)

# Read by the classes and checked here, by `Dims` or by the rope.
_CHECKED = frozenset(
    {
        *("model_type", "architectures", "hidden_act", "rms_norm_eps", "norm_eps", "attention_bias"),
        *("mlp_bias", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings", "is_causal"),
        *("max_position_embeddings", "quantization_config", "pruned_heads", "add_cross_attention"),
        "is_encoder_decoder",
        *(THETA, SCALING, PARAMETERS, FRACTION, ORIGINAL, *_WINDOW_FIELDS),
    }
)

# Without effect on what a model computes, or on what a checkpoint of this project says: token ids and
# texts (the tokenizer and generation settings decide), storage, initial values, what only training or
# other tasks use, settings of the machine that wrote the file.
_WITHOUT_EFFECT = frozenset(
    {
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id"),
        *("mask_token_id", "decoder_start_token_id", "dtype", "torch_dtype", "transformers_version"),
        *("_name_or_path", "name_or_path", "_commit_hash", "auto_map", "use_cache", "return_dict"),
        *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "dropout"),
        *("residual_dropout", "embedding_dropout", "initializer_range", "initializer_factor"),
        *("pretraining_tp", "tensor_parallel", "output_attentions", "output_hidden_states", "torchscript"),
        *("use_bfloat16", "use_return_dict", "chunk_size_feed_forward", "id2label", "label2id"),
        *("num_labels", "problem_type", "finetuning_task", "task_specific_params", "tokenizer_class"),
        *("prefix", "is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder"),
        *("gradient_checkpointing", "is_llama_config", "transformers.js_config", "unsloth_fixed"),
        *("unsloth_version", "model_name", "language", "license", "model_max_length", "max_sequence_length"),
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
        *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
        *("num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("suppress_tokens", "begin_suppress_tokens", "tf_legacy_loss", "_attn_implementation"),
        *("_attn_implementation_internal", "_attn_implementation_autoset", "attn_implementation"),
        *("_experts_implementation_internal", "_output_attentions", "_flash_attn_2_enabled"),
    }
)


def check_config(config: Mapping[str, object], *, where: str) -> tuple[Dims, tuple[str, ...]]:
    """The dimensions of a source, once every field of its config is known to be computed as it says.

    `config` is as it is written, before any class fills in its defaults. Warnings are about fields that no
    model class here reads.

    Raises:
        UnsupportedError: naming the first field that cannot be honoured, and its value.
    """
    dims = dims_of_config(config)
    family = dims.family
    check_shape(dims, where=where)
    _check_values(config, family, where)
    _check_names(config, family, where)
    _check_rope(config, dims, where)
    _check_window(config, dims, where)
    warnings = []
    if unread := _unread_fields(config, dims, where):
        names = ", ".join(unread)
        warnings.append(f"{where}: no {family.model_type} class reads {names}: taken to be without effect")
    if config.get("auto_map"):
        warnings.append(
            f"{where}: auto_map names code of the model's own, which is not copied: students and exports "
            f"are plain {family.model_type} models"
        )
    classes = config.get("architectures")
    expected = f"{family.model_type}forcausallm"
    if isinstance(classes, list) and classes and expected not in [name.lower() for name in classes]:
        warnings.append(f"{where}: architectures names {classes}; read as {family.model_type} for language")
    return dims, tuple(warnings)


def layer_types(config: Mapping[str, object], dims: Dims) -> tuple[str, ...] | None:
    """What kind of attention every layer has, as the family's class decides it; None where all are alike.

    Qwen's classes read `layer_types`, and without it give a window to layers from `max_window_layers` on.
    """
    if not dims.family.window_by_layer:
        return None
    given = config.get(LAYER_TYPES)
    if isinstance(given, list):
        return tuple(given)
    window = config.get(WINDOW, 4096) if config.get("use_sliding_window") else None
    if window is None:
        return None
    first = config.get("max_window_layers", 28)
    assert isinstance(first, int)
    return tuple(SLIDING if index >= first else FULL for index in range(dims.num_hidden_layers))


def _check_values(config: Mapping[str, object], family: Family, where: str) -> None:
    activation = config.get("hidden_act", family.activation)
    # transformers has two names for one function.
    if activation != family.activation and (family.activation, activation) != ("silu", "swish"):
        raise _refused("hidden_act", activation, where, expected=family.activation)
    epsilon = config.get(family.norm_epsilon, family.defaults[family.norm_epsilon])
    if not is_number(epsilon) or not 0 < epsilon < 1:
        raise _refused(family.norm_epsilon, epsilon, where, expected="a number between 0 and 1")
    context = config.get("max_position_embeddings", 1)
    if isinstance(context, bool) or not isinstance(context, int) or not 0 < context <= 1 << 40:
        raise _refused("max_position_embeddings", context, where, expected="a positive whole number")
    if config.get("head_dim", 0) is None and "head_dim" in family.defaults:
        raise _refused("head_dim", None, where, expected="a number, or no such field")
    if config.get("is_causal") is False:
        raise _refused("is_causal", config["is_causal"], where, expected="true")
    for name in ("pruned_heads", "add_cross_attention", "is_encoder_decoder"):
        if config.get(name):
            raise _refused(name, config[name], where, expected="none")
    if not isinstance(config.get("tie_word_embeddings", False), bool):
        raise _refused("tie_word_embeddings", config["tie_word_embeddings"], where, expected="true or false")


def _check_names(config: Mapping[str, object], family: Family, where: str) -> None:
    """What names classes, and tokens by their ids."""
    classes = config.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(n, str) for n in classes)):
        raise _refused("architectures", classes, where, expected="a list of class names, or null")
    size = config.get("vocab_size", family.defaults.get("vocab_size"))
    if not isinstance(size, int):
        return
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        given = config.get(name)
        ids = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, int)]
        is_row = name == "pad_token_id"  # of the embedding, counted from its end where it is negative
        if any(one >= size or (is_row and one < -size) for one in ids):
            raise _refused(name, given, where, expected=f"an id below vocab_size, {size}, or null")


def _check_rope(config: Mapping[str, object], dims: Dims, where: str) -> None:
    rope = rope_of(config)
    fraction = 1.0 if rope.fraction is None else rope.fraction
    rotated = int(dims.head_dim * min(fraction, 1))
    if rope.kind != "default" and not dims.family.supports_rope_scaling:
        raise _refused(SCALING, rope.kind, where, expected="null: this family is supported without scaling")
    if dims.family.rotary_fraction is None and fraction != 1:
        raise _refused(FRACTION, fraction, where, expected="1: this family rotates whole heads")
    if fraction == 1 and rotated % 2:
        raise _refused("head_dim", dims.head_dim, where, expected="an even number: halves are rotated")
    if not 0 < fraction <= 1 or rotated == 0 or rotated % 2:
        raise _refused(FRACTION, fraction, where, expected=f"an even part of {dims.head_dim} channels")
    if rope.kind == "longrope":
        for name in ("short_factor", "long_factor"):
            if (number := len(rope.factors(name))) != rotated // 2:
                found = f"{number} numbers"
                raise _refused(name, found, where, expected=f"{rotated // 2} numbers, one a frequency")


def _check_window(config: Mapping[str, object], dims: Dims, where: str) -> None:
    window, family = config.get(WINDOW), dims.family
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window <= 0):
        raise _refused(WINDOW, window, where, expected="a positive whole number, or null")
    types = config.get(LAYER_TYPES)
    if types is not None and (not isinstance(types, list) or len(types) != dims.num_hidden_layers):
        raise _refused(LAYER_TYPES, types, where, expected=f"{dims.num_hidden_layers} names, one a layer")
    kinds = set(map(str, types or ()))
    if family.window_by_layer:
        first = config.get("max_window_layers", 0)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise _refused("max_window_layers", first, where, expected="a number of layers")
        has_window = bool(config.get("use_sliding_window")) and config.get(WINDOW, 4096) is not None
        if kinds - {FULL, SLIDING} or (SLIDING in kinds and not has_window):
            expected = f"{FULL}, or {SLIDING} with a window in use"
            raise _refused(LAYER_TYPES, sorted(kinds), where, expected=expected)
        return
    has_window = WINDOW in family.defaults and config.get(WINDOW, family.defaults[WINDOW]) is not None
    alike = {SLIDING if has_window else FULL} if family.reads_layer_types else set()
    if kinds - alike:
        expected = " or ".join(["no such field", *alike]) + f": all {family.model_type} layers are alike"
        raise _refused(LAYER_TYPES, sorted(kinds), where, expected=expected)
    used = config.get("use_sliding_window")
    if used is not None and bool(used) != has_window:
        expected = f"{has_window}, which the {family.model_type} class does, or no such field"
        raise _refused("use_sliding_window", used, where, expected=expected)
    first = config.get("max_window_layers")
    if has_window and first:
        raise _refused("max_window_layers", first, where, expected="0, or no such field: all have a window")
    if window is not None and WINDOW not in family.defaults:
        raise _refused(WINDOW, window, where, expected=f"null: no {family.model_type} class has a window")


def _unread_fields(config: Mapping[str, object], dims: Dims, where: str) -> list[str]:
    """Fields that no class reads and whose names stand for no computation.

    Raises:
        UnsupportedError: for one whose name stands for a computation, with a value that changes it.
    """
    family, rope = dims.family, rope_of(config)
    epsilon: float = config.get(family.norm_epsilon) or family.defaults[family.norm_epsilon]  # type: ignore[assignment]
    known = (_CHECKED | _WITHOUT_EFFECT) - EPSILONS | {family.norm_epsilon}
    unread = []
    for name in sorted(set(config) - known):
        if config[name] is None:
            continue
        neutral = neutral_values(name, dims, rope, epsilon)
        if neutral is None:
            unread.append(name)
        elif not is_one_of(config[name], neutral):
            expected = f"{neutral[0]}, which the {family.model_type} class computes, or no such field"
            if len(neutral) > 1:
                expected = "no such field, or a value without effect"
            raise _refused(name, config[name], where, expected=expected)
    return unread


def _refused(name: str, value: object, where: str, *, expected: str) -> UnsupportedError:
    return UnsupportedError(
        f"a config field asks for a computation that is not supported: {name}",
        where=f"{where}: {name}",
        expected=expected,
        found=repr(value) if isinstance(value, str) else value,
        hint="if the model was not trained with it, correct this field; otherwise the model is not supported",
    )
