"""Parameter, memory and FLOP arithmetic of a decoder, from its dimensions alone.

No torch, no files: `plan` answers from here in milliseconds.

Legend: H hidden, I intermediate, L layers, N query heads, K key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from compressor.core.errors import UnsupportedError
from compressor.models.axes import AXES, GROUP_AXES, PRUNABLE_AXES, Weight
from compressor.models.families import Family, family_of

# Far above any published model; below what would keep a loop over layers or names busy.
LARGEST = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 26,
}
SHAPE_FIELDS = tuple(LARGEST)
PRUNABLE_FIELDS = ("num_hidden_layers", *(axis.field for axis in PRUNABLE_AXES.values()))
# What an explicit shape may lower beside them.
GROUP_FIELDS = tuple(AXES[name].field for name in GROUP_AXES.values())


@dataclass(frozen=True, kw_only=True)
class Dims:
    """Dimensions of one decoder-only transformer, in Hugging Face names."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def family(self) -> Family:
        """The architecture's row in the table of families."""
        return family_of(self.model_type)

    def with_shape(self, **shape: int) -> Dims:
        """A copy with some dimensions replaced."""
        return replace(self, **shape)  # type: ignore[arg-type]  # the names are those of whole numbers

    def untied(self) -> Dims:
        """A copy with an LM head of its own."""
        return replace(self, tie_word_embeddings=False)

    def units(self, axis: str) -> int:
        """Number of units of an axis: heads or channels."""
        count: int = getattr(self, AXES[axis].field)
        return count

    def width(self, axis: str) -> int:
        """Channels of one unit of an axis."""
        return self.head_dim if AXES[axis].is_head else 1

    def size(self, axis: str) -> int:
        """Channels of an axis."""
        return self.units(axis) * self.width(axis)

    def shape_of(self, weight: Weight) -> tuple[int, ...]:
        """The shape of a weight."""
        rows = sum(map(self.size, weight.rows.values()))
        return (rows,) if weight.columns is None else (rows, self.size(weight.columns))

    def first_row(self, weight: Weight, part: str) -> int:
        """The row of a weight at which one of its parts begins."""
        names = list(weight.rows)
        return sum(self.size(weight.rows[name]) for name in names[: names.index(part)])

    def weights(self) -> dict[str, tuple[Weight, int | None]]:
        """Every weight of the model by its full name, with the index of its layer."""
        family = self.family
        found: dict[str, tuple[Weight, int | None]] = {
            f"{family.layers}.{index}.{weight.name}": (weight, index)
            for index in range(self.num_hidden_layers)
            for weight in family.layer
        }
        is_tied = self.tie_word_embeddings
        outside = [weight for weight in family.network if not (is_tied and "head" in weight.rows)]
        return {**found, **{weight.name: (weight, None) for weight in outside}}

    def linear_names(self) -> list[str]:
        """Full names of the decoder's linear layers: what quantisation and sparsity cover."""
        family = self.family
        return [
            f"{family.layers}.{index}.{name}"
            for index in range(self.num_hidden_layers)
            for name in family.linear_layers
        ]

    def to_dict(self) -> dict[str, int | bool | str]:
        """Plain values for JSON, with the parameter counts."""
        return {
            **asdict(self),
            "num_parameters": num_parameters(self),
            "num_non_embedding_parameters": num_non_embedding_parameters(self),
        }


def dims_of_config(config: Mapping[str, object]) -> Dims:
    """Read the dimensions from the fields of a Hugging Face `config.json`.

    Raises:
        UnsupportedError: for a `model_type` the table of families does not hold, or a field that is
            missing, no whole number or out of all proportion.
    """
    model_type = str(config.get("model_type"))
    family = family_of(model_type)
    for flag in family.unsupported_flags:
        if config.get(flag):
            raise UnsupportedError(
                f"{model_type} models with {flag} are not supported",
                where=f"config.json: {flag}",
                expected=False,
                found=True,
                hint="start from a model without these biases",
            )

    def number(field: str, default: int | None = None) -> int:
        # The classes take an absent field for their default, and null for what follows from the others.
        value = config.get(field, family.defaults.get(field, default))
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST[field]:
            raise UnsupportedError(
                f"config.json has no usable {field}",
                where=field,
                expected=f"a whole number from 1 to {LARGEST[field]:,}",
                found=value,
                hint="download config.json again, or correct this field",
            )
        return value

    hidden_size, num_heads = number("hidden_size"), number("num_attention_heads")
    derived = {"num_key_value_heads": num_heads, "head_dim": max(1, hidden_size // num_heads)}
    shape = {field: number(field, derived.get(field)) for field in SHAPE_FIELDS}
    is_tied = bool(config.get("tie_word_embeddings", False))
    return Dims(model_type=model_type, tie_word_embeddings=is_tied, **shape)


def check_shape(dims: Dims, *, where: str = "the shape") -> None:
    """Refuse, as unsupported, heads that do not fill their groups, or a hidden size the class refuses."""
    heads, groups = dims.num_attention_heads, dims.num_key_value_heads
    if heads % groups:
        hint = f"set num_attention_heads to a multiple of {groups}"
        if heads < groups:  # as where each query head has a key/value head of its own
            hint = (
                f"set num_key_value_heads={heads} too, which removes key/value heads with their query heads"
            )
        raise UnsupportedError(
            "query heads must fill the key/value groups evenly",
            where=f"{where}: num_attention_heads, num_key_value_heads",
            expected=f"a multiple of {groups}",
            found=heads,
            hint=hint,
        )
    if dims.family.hidden_divisible_by_heads and dims.hidden_size % heads:
        raise UnsupportedError(
            f"{dims.model_type} demands a hidden size divisible by the number of query heads, "
            "also where head_dim is given (transformers 5 does not load it otherwise)",
            where=f"{where}: hidden_size",
            expected=f"a multiple of {heads}",
            found=dims.hidden_size,
            hint=f"set hidden_size to a multiple of {heads}",
        )


def num_embedding_parameters(dims: Dims) -> int:
    """Embedding and LM head: V H once when tied, twice otherwise."""
    return dims.vocab_size * dims.hidden_size * (1 if dims.tie_word_embeddings else 2)


def num_linear_parameters(dims: Dims) -> int:
    """Weights of all linear layers inside the decoder layers: what quantisation covers."""
    return dims.num_hidden_layers * _count(dims, dims.family.linears)


def num_non_embedding_parameters(dims: Dims) -> int:
    """Linear layers with their biases, and norms; embedding and LM head left out."""
    family = dims.family
    outside = [weight for weight in family.network if weight.columns is None]
    return _count(dims, outside) + dims.num_hidden_layers * _count(dims, family.layer)


def _count(dims: Dims, weights: Iterable[Weight]) -> int:
    return sum(math.prod(dims.shape_of(weight)) for weight in weights)


@functools.lru_cache(maxsize=1 << 14)  # choosing a shape asks for the same ones again and again
def num_parameters(dims: Dims) -> int:
    """All parameters, embeddings included."""
    return num_embedding_parameters(dims) + num_non_embedding_parameters(dims)


def weight_bytes(dims: Dims, precision: str, *, is_sparse: bool = False) -> int:
    """Bytes of the weights; FP8 and int4 cover the decoder's linear layers, the rest stays 16-bit.

    Packed 2:4 layers keep two of four weights and two bits for the place of each.
    """
    linear = num_linear_parameters(dims)
    rest = num_parameters(dims) - linear
    bits = {"fp32": (32, 32), "fp16": (16, 16), "bf16": (16, 16), "fp8": (8, 16), "int4": (4.5, 16)}
    linear_bits, rest_bits = bits[precision]
    if is_sparse:
        linear_bits = linear_bits / 2 + 1
    return int((linear * linear_bits + rest * rest_bits) // 8)


def kv_cache_bytes_per_token(dims: Dims, bytes_per_value: int = 2) -> int:
    """Keys and values of all layers for one token of one sequence."""
    return 2 * dims.num_hidden_layers * dims.num_key_value_heads * dims.head_dim * bytes_per_value


def flops_per_token(dims: Dims, context: int = 0) -> int:
    """FLOPs of one forward token: two per weight (LM head included), plus attention over `context`."""
    head = dims.vocab_size * dims.hidden_size
    attention = 2 * dims.num_hidden_layers * dims.num_attention_heads * dims.head_dim * context
    return 2 * (num_linear_parameters(dims) + head + attention)
