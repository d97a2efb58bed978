"""`config.json` of a TensorRT-LLM checkpoint, from a Hugging Face config, and the shapes it can express.

Written out always: `head_size` (the default, hidden size over heads, is wrong after width pruning),
`rotary_base` and `rotary_scaling` (the defaults, 10000 and none, are a silently different model).
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.core.errors import UnsupportedError
from compressor.models.axes import AXES
from compressor.models.checkpoint import CONFIG_FILE
from compressor.models.config.class_defaults import applied_window, value_of
from compressor.models.config.portable import portable_config
from compressor.models.dims import Dims, dims_of_config
from compressor.models.families import Family, TensorRTLLM
from compressor.models.sparse.record import SparsityRecord
from exporters.expressible import Expressible
from exporters.tensorrt_llm.fields import (
    EXCLUDED,
    LOGITS_DTYPE,
    POSITION_EMBEDDING,
    QUANTISED,
    SEQ_LENGTH,
    check_fields,
)

# What TensorRT-LLM's rope tables compute as transformers does. Its own "dynamic" reads `alpha`, another
# model's field; yarn and longrope belong to embeddings that these families' layers do not use.
ROPE_TYPES = ("llama3", "linear")


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How a model is cut into ranks: rank = pp_rank * tp_size + tp_rank."""

    tp_size: int = 1
    pp_size: int = 1

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tp_size * self.pp_size

    def layers_of(self, pp_rank: int, num_layers: int) -> range:
        """The layers of one pipeline stage; the first stages take one more when they do not divide."""
        size, longer = divmod(num_layers, self.pp_size)
        start = pp_rank * size + min(pp_rank, longer)
        return range(start, start + size + (pp_rank < longer))


def padded_vocab(vocab_size: int, tp_size: int) -> int:
    """The vocabulary size, rounded up to a multiple of `tp_size`."""
    return -(-vocab_size // tp_size) * tp_size


def format_of(family: Family) -> TensorRTLLM:
    """What TensorRT-LLM calls this family; UnsupportedError when no such checkpoint is confirmed for it."""
    if family.tensorrt_llm is None:
        raise UnsupportedError(
            f"{family.model_type} models cannot be exported to TensorRT-LLM checkpoints",
            where=f"{CONFIG_FILE}: model_type",
            hint="use --format huggingface, which newer TensorRT-LLM, vLLM and SGLang load",
        )
    return family.tensorrt_llm


def checkpoint_config(
    config: dict[str, object], *, dtype: str, parallelism: Parallelism, fp8: bool, fp8_kv_cache: bool
) -> dict[str, object]:
    """The checkpoint's `config.json`, from a Hugging Face config of either generation.

    `dtype` is `float16` or `bfloat16`, of everything that is not FP8; `fp8` says whether the decoder's
    linear layers are, `fp8_kv_cache` whether keys and values are. What cannot be expressed is an
    UnsupportedError.
    """
    dims = dims_of_config(config)
    facts = format_of(dims.family)
    check_expressible(config, dims, parallelism)
    rope = portable_config(config)
    quantization: dict[str, object] = {
        "quant_algo": QUANTISED if fp8 else None,
        "kv_cache_quant_algo": QUANTISED if fp8_kv_cache else None,
    }
    if fp8:
        quantization["exclude_modules"] = list(EXCLUDED)
    rotary_fraction = {"rotary_pct": rotary_fraction_of(config)} if facts.writes_rotary_fraction else {}
    seq_length = {"seq_length": config.get("seq_length", SEQ_LENGTH)} if facts.writes_seq_length else {}
    written = {
        "architecture": facts.architecture,
        "dtype": dtype,
        "logits_dtype": LOGITS_DTYPE,
        **{name: getattr(dims, name) for name in _DIMENSIONS},
        "head_size": dims.head_dim,
        "max_position_embeddings": value_of(config, "max_position_embeddings"),
        "hidden_act": facts.activation[1],
        "norm_epsilon": value_of(config, facts.norm_epsilon),
        "position_embedding_type": POSITION_EMBEDDING,
        "rotary_base": rope["rope_theta"],
        "rotary_scaling": rope.get("rope_scaling"),
        **rotary_fraction,
        **dict(facts.config),
        **seq_length,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": parallelism.world_size,
            "tp_size": parallelism.tp_size,
            "pp_size": parallelism.pp_size,
        },
        "quantization": quantization,
    }
    check_fields(written)
    return written


_DIMENSIONS = (
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_size", "intermediate_size", "vocab_size"),
)


def rotary_fraction_of(config: dict[str, object]) -> float:
    """The part of every head that is rotated; transformers 5 keeps it beside the rope base."""
    found = portable_config(config).get("partial_rotary_factor")
    return 1.0 if found is None else float(found)


_FORMAT = Expressible(what="a TensorRT-LLM checkpoint", option="tensorrt-llm")


def check_expressible(config: dict[str, object], dims: Dims, parallelism: Parallelism) -> None:
    """Refuse what a checkpoint would silently leave out, and cuts that do not come out even."""
    facts, tp_size = format_of(dims.family), parallelism.tp_size
    rope = portable_config(config)
    _FORMAT.expect("rope_theta", rope.get("rope_theta") is not None, "a number", rope.get("rope_theta"))
    scaling = rope.get("rope_scaling") or {}
    rope_type = scaling.get("rope_type", scaling.get("type"))
    _FORMAT.expect("rope_scaling", not scaling or rope_type in ROPE_TYPES, " or ".join(ROPE_TYPES), rope_type)
    rotated = rotary_fraction_of(config)
    _FORMAT.expect("partial_rotary_factor", facts.writes_rotary_fraction or rotated == 1, "1", rotated)
    activation = value_of(config, "hidden_act")
    _FORMAT.expect("hidden_act", activation == facts.activation[0], facts.activation[0], activation)
    window, length = applied_window(config), value_of(config, "max_position_embeddings")
    _FORMAT.expect(
        "sliding_window", window is None or window >= length, f"none, or at least {length}", window
    )
    heads, key_heads = dims.num_attention_heads, dims.num_key_value_heads
    _FORMAT.expect("num_attention_heads", heads % tp_size == 0, f"a multiple of tp_size {tp_size}", heads)
    _FORMAT.expect(
        "num_key_value_heads",
        key_heads % tp_size == 0 or tp_size % key_heads == 0,
        f"a multiple or a divisor of tp_size {tp_size}",
        key_heads,
    )
    inner = dims.intermediate_size
    _FORMAT.expect("intermediate_size", inner % tp_size == 0, f"a multiple of tp_size {tp_size}", inner)
    layers, stages = dims.num_hidden_layers, parallelism.pp_size
    _FORMAT.expect("num_hidden_layers", layers >= stages, f"at least pp_size {stages}", layers)


def check_sparse_cuts(sparsity: SparsityRecord, dims: Dims, tp_size: int) -> None:
    """Refuse (UnsupportedError) ranks whose columns would begin inside a group of a sparse matrix."""
    size, weights = sparsity.pattern.group_size, dims.weights()
    for name, (_, columns) in sparsity.shapes.items():
        axis = weights[name][0].columns
        if axis is not None and AXES[axis].is_cut and columns // tp_size % size:
            raise UnsupportedError(
                f"tp_size {tp_size} cuts through the {sparsity.pattern} groups of a sparse matrix",
                where=name,
                expected=f"columns of every rank that are a multiple of {size}",
                found=f"{columns} / {tp_size} = {columns // tp_size}",
                hint="use a smaller --tp-size, or another shape",
            )
