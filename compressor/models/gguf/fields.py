"""What the fields of a GGUF header say about the computation, as fields of a Hugging Face config.

Every key of the architecture's own namespace is read here, known to change nothing, or refused by name: a
key that nobody looks at may scale logits, route experts or bend positions. The meaning of the keys, their
defaults included, is that of llama.cpp's loader (src/llama-model.cpp), and of convert_hf_to_gguf.py, which
writes them.
"""

from __future__ import annotations

import numpy as np

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.families import FAMILIES, family_of
from compressor.models.gguf.header import ORIGINAL_CHECKPOINT, GgufHeader

_READ = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *(f"attention.{key}" for key in ("head_count", "head_count_kv", "key_length", "value_length")),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *(f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length")),
    *(f"rope.scaling.yarn_{key}" for key in ("beta_fast", "beta_slow", "attn_factor")),
)
# Keys that may be there as long as they say what is computed anyway; None: whatever they say.
_NEUTRAL: dict[str, tuple[object, ...] | None] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.finetuned": None,
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "tensor_data_layout": None,
    "use_parallel_residual": (False,),
}


class Fields:
    """The fields of one header in its architecture's namespace."""

    def __init__(self, header: GgufHeader) -> None:
        """Read the architecture, and refuse every field that is not understood."""
        self.header = header
        self.architecture = str(header.field("general.architecture"))
        layout = family_of(self.architecture).gguf
        if layout is None:
            raise UnsupportedError(
                f"GGUF files of architecture {self.architecture!r} are not read",
                where=str(header.path),
                expected=" or ".join(name for name, family in FAMILIES.items() if family.gguf),
                hint=ORIGINAL_CHECKPOINT,
            )
        self.layout = layout
        self._refuse_unknown()

    def number(self, key: str, default: int | None = None) -> int:
        """A positive count; unsupported is another kind of value, such as one count per layer."""
        value = self._required(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.refuse(key, expected="one positive number")
        return value

    def decimal(self, key: str, default: float | None = None) -> float:
        """A positive finite number, as the shortest decimal that is stored as the file's float32."""
        value = self._required(key, default)
        if not isinstance(value, int | float):
            raise self.refuse(key, expected="a positive number")
        with np.errstate(over="ignore", under="ignore"):
            stored = np.float32(value)  # of a wider field it may be infinite, or nothing
        if not np.isfinite(stored) or stored <= 0:
            raise self.refuse(key, expected="a positive number")
        return float(str(stored))

    def get(self, key: str, default: object = None) -> object:
        """A field's value, or the default."""
        return self.header.fields.get(f"{self.architecture}.{key}", default)

    def refuse(self, key: str, expected: object) -> UnsupportedError:
        """The error for a field whose value cannot be used."""
        return UnsupportedError(
            "a field of the GGUF file changes the model in a way that is not supported",
            where=f"{self.header.path}: {self.architecture}.{key}",
            expected=expected,
            found=self.get(key),
            hint=ORIGINAL_CHECKPOINT,
        )

    def _required(self, key: str, default: float | None) -> object:
        value = self.get(key, default)
        return self.header.field(f"{self.architecture}.{key}") if value is None else value

    def _refuse_unknown(self) -> None:
        prefix = f"{self.architecture}."
        for name in self.header.fields:
            key = name.removeprefix(prefix)
            if key == name or key in _READ:
                continue
            if key not in _NEUTRAL:
                raise self.refuse(key, expected="no such field")
            values, found = _NEUTRAL[key], self.header.fields[name]
            if values is not None and found not in values and not self._says_nothing(key, found):
                raise self.refuse(key, expected=" or ".join(map(str, values)))

    def _says_nothing(self, key: str, value: object) -> bool:
        """Whether a window spans the whole context, or a scale is the usual one."""
        if key == "attention.sliding_window":
            return isinstance(value, int) and value >= self.number("context_length")
        if key == "attention.scale":
            return isinstance(value, float) and bool(np.isclose(value, head_dim(self) ** -0.5, rtol=1e-6))
        return False


def head_dim(fields: Fields) -> int:
    """Length of one head, of queries, keys and values alike; unsupported where they differ."""
    default = fields.number("embedding_length") // fields.number("attention.head_count")
    length = fields.number("attention.key_length", max(default, 1))
    if fields.number("attention.value_length", length) != length:
        raise fields.refuse("attention.value_length", expected=f"attention.key_length, {length}")
    return length


def rope_theta(fields: Fields) -> float:
    """Base of the rotary embedding."""
    return fields.decimal("rope.freq_base", 10_000.0)


def config_of(fields: Fields) -> dict[str, object]:
    """The fields of `config.json` but for rope scaling and special tokens."""
    layout = fields.layout
    length, num_heads = head_dim(fields), fields.number("attention.head_count")
    epsilon, epsilon_field = layout.norm_epsilon
    rotated = fields.number("rope.dimension_count", length)
    if rotated > length or (rotated != length and not layout.rotates_part):
        raise fields.refuse("rope.dimension_count", expected=f"the length of a head, {length}")
    return {
        **dict.fromkeys(layout.off, False),
        "architectures": [f"{fields.architecture.capitalize()}ForCausalLM"],
        "hidden_act": family_of(fields.architecture).activation,
        "model_type": fields.architecture,
        "hidden_size": fields.number("embedding_length"),
        "intermediate_size": fields.number("feed_forward_length"),
        "num_hidden_layers": _num_layers(fields),
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.number("attention.head_count_kv", num_heads),
        "head_dim": length,
        "vocab_size": _vocab_size(fields),
        "max_position_embeddings": fields.number("context_length"),
        "rope_theta": rope_theta(fields),
        "tie_word_embeddings": "output.weight" not in fields.header.tensors,
        epsilon_field: fields.decimal(epsilon),
        **({"partial_rotary_factor": rotated / length} if layout.rotates_part else {}),
    }


def _num_layers(fields: Fields) -> int:
    """How many layers; never more than the file has tensors."""
    declared, num_tensors = fields.number("block_count"), len(fields.header.tensors)
    if declared > num_tensors:
        raise VerificationError(
            "the GGUF file has fewer tensors than layers",
            where=str(fields.header.path),
            expected=f"{declared:,} layers, as {fields.architecture}.block_count says",
            found=f"{num_tensors:,} tensors",
        )
    return declared


def _vocab_size(fields: Fields) -> int:
    """Rows of the embedding; what the header says must agree."""
    embedding = fields.header.tensors.get("token_embd.weight")
    if embedding is None:
        raise VerificationError(
            "the GGUF file lacks a tensor", where=str(fields.header.path), expected="token_embd.weight"
        )
    num_rows = embedding.shape[0]
    declared = fields.number("vocab_size", num_rows)
    tokens = len(fields.header.listed("tokenizer.ggml.tokens"))
    if declared != num_rows or tokens > num_rows:
        raise VerificationError(
            "the vocabulary and the embedding of the GGUF file differ in size",
            where=str(fields.header.path),
            expected=f"{num_rows} rows of token_embd.weight",
            found=f"vocab_size {declared}, {tokens} tokens",
        )
    return num_rows
