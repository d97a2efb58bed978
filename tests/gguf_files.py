"""GGUF files of tiny models, written with the `gguf` package as convert_hf_to_gguf.py writes them.

The weights come from NumPy's generator alone, so that the bytes are the same under every version of torch
and transformers: llama.cpp's answers were recorded for exactly these bytes (tests/golden/gguf).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

Array = np.ndarray[Any, Any]
ROLES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
TRAINING_TEXT = (
    "In 2024 and 2025, 1234567 people didn't see 3.14159 of the 100 200 300 things; they'll see 12345 more.\n"
    "def f(x):\n    if x > 10:\n        return x ** 2\n\n    return [1, 22, 333]\n\n\n"
    "HTTPServer2Go camelCase camelCase camelCase snake_case  two  spaces,   three\t\ttabs "
    "!! == ==> ... $x^2$ (a) [b] {c}\r\n"
) * 3


@dataclass(frozen=True, kw_only=True)
class TinyGguf:
    """A tiny model as a GGUF file.

    Attributes:
        kind: Type of the matrices; norms and biases are always F32.
        rope: `rope_scaling` of the model's Hugging Face config.
        fields: Further fields of the architecture's namespace, which also replace the usual ones.
        leave_out: Usual fields that are not written.
        extra: Further tensors.
        biases: Hugging Face roles that carry a bias.
        pre: `tokenizer.ggml.pre`; None writes none.
        tokenizer: gpt2 or llama.
    """

    architecture: str = "llama"
    kind: str = "F32"
    rope: Mapping[str, Any] = field(default_factory=dict)
    rope_theta: float = 10_000.0
    context: int = 4096
    head_dim: int = 16
    rotated: int | None = None
    hidden_size: int = 64
    intermediate_size: int = 96
    num_layers: int = 2
    tied: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    tokenizer_fields: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Array] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    pre: str | None = "smollm"
    tokenizer: str = "gpt2"
    seed: int = 0

    num_heads = 4
    num_kv_heads = 2

    def weights(self) -> dict[str, Array]:
        """The Hugging Face weights, float32, by name."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        return {name: _random(name, shape, generator) for name, shape in self._shapes().items()}

    def write(self, path: Path) -> Path:
        """Write the file; equal settings give equal bytes."""
        writer = gguf.GGUFWriter(path, self.architecture)
        self._write_fields(writer)
        _write_vocabulary(writer, self)
        for name, value in self.tokenizer_fields.items():
            _add(writer, f"tokenizer.{name}", value)
        for name, values in self._stored().items():
            kind = self.kind if values.ndim == 2 else "F32"
            _add_tensor(writer, name, values, gguf.GGMLQuantizationType[kind])
        for name, values in self.extra.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return len(vocabulary(self.tokenizer).tokens)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, query = self.hidden_size, self.num_heads * self.head_dim
        keys = self.num_kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (query, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, query),
            "mlp.up_proj.weight": (self.intermediate_size, hidden),
            "mlp.down_proj.weight": (hidden, self.intermediate_size),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        biases = list(self.biases)
        if self.architecture == "nemotron":
            biases += ["input_layernorm", "post_attention_layernorm"]
        else:
            layer["mlp.gate_proj.weight"] = (self.intermediate_size, hidden)
        if self.architecture == "qwen2":
            biases += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        if self.architecture == "qwen3":
            layer |= {f"self_attn.{name}_norm.weight": (self.head_dim,) for name in "qk"}
        layer |= {f"{role}.bias": layer[f"{role}.weight"][:1] for role in biases}
        shapes = {
            f"model.layers.{index}.{name}": shape
            for index in range(self.num_layers)
            for name, shape in layer.items()
        }
        shapes |= {"model.embed_tokens.weight": (self.vocab_size, hidden), "model.norm.weight": (hidden,)}
        if self.architecture == "nemotron":
            shapes["model.norm.bias"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def _stored(self) -> dict[str, Array]:
        """Weights under llama.cpp's names, arranged as its converter arranges them."""
        stored: dict[str, Array] = {}
        for name, values in self.weights().items():
            role, kind = name.rsplit(".", 1)
            arranged = values
            if self.architecture == "llama" and role.endswith(("q_proj", "k_proj")):
                heads = self.num_heads if role.endswith("q_proj") else self.num_kv_heads
                halves = values.reshape(heads, 2, self.head_dim // 2, *values.shape[1:])
                arranged = halves.swapaxes(1, 2).reshape(values.shape)
            if self.architecture == "nemotron" and name.endswith("norm.weight"):
                arranged = values + np.float32(1)
            top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            if role in top:
                stored[f"{top[role]}.{kind}"] = arranged
            else:
                _, _, index, rest = role.split(".", 3)
                stored[f"blk.{index}.{ROLES[rest]}.{kind}"] = arranged
        if self.rope.get("rope_type") == "llama3":
            stored["rope_freqs.weight"] = llama3_factors(self.rope, self.rope_theta, self.head_dim)
        return stored

    def _write_fields(self, writer: gguf.GGUFWriter) -> None:
        fields: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "context_length": self.context,
            "embedding_length": self.hidden_size,
            "block_count": self.num_layers,
            "feed_forward_length": self.intermediate_size,
            "attention.head_count": self.num_heads,
            "attention.head_count_kv": self.num_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": self.rope_theta,
            "rope.dimension_count": self.rotated or self.head_dim,
        }
        if self.architecture == "nemotron":
            fields["attention.layer_norm_epsilon"] = 1e-5
            fields["rope.scaling.type"] = "none"
        kind = self.rope.get("rope_type")
        if kind in ("linear", "yarn"):
            fields |= {"rope.scaling.type": kind, "rope.scaling.factor": float(self.rope["factor"])}
        if kind == "yarn":
            fields["rope.scaling.original_context_length"] = self.rope["original_max_position_embeddings"]
            for key in ("beta_fast", "beta_slow"):
                if key in self.rope:
                    fields[f"rope.scaling.yarn_{key}"] = float(self.rope[key])
        for key, value in {**fields, **self.fields}.items():
            if key not in self.leave_out:
                _add(writer, f"{self.architecture}.{key}", value)


def llama3_factors(rope: Mapping[str, Any], theta: float, head_dim: int) -> Array:
    """What convert_hf_to_gguf.py writes as `rope_freqs.weight`, in its own order of float32 operations."""
    single = np.float32  # at every step, so that NumPy 1 and 2 promote alike
    low, high, factor = (single(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    context, one, factors = single(rope["original_max_position_embeddings"]), single(1), []
    for channel in range(0, head_dim, 2):
        wavelength = single(2 * math.pi) / single(theta ** (-channel / head_dim))
        if wavelength < context / high:
            factors.append(one)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(one / ((one - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens, their llama.cpp types, and merges or scores."""

    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    bos: int
    eos: int


@functools.cache
def vocabulary(kind: str) -> Vocabulary:
    """A small vocabulary whose merges reach across every border that a pre-tokenizer may draw."""
    return _byte_pairs() if kind == "gpt2" else _sentencepiece()


def _byte_pairs(num_merges: int = 200) -> Vocabulary:
    encoder = bytes_to_unicode()
    words = [encoder[byte] for byte in TRAINING_TEXT.encode()]
    merges = [f"{left} {right}" for left, right in _train(words, num_merges)]
    tokens = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|tool|>"]
    types = [3, 3, 3, 3, 4]
    tokens += [encoder[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    types += [1] * (len(tokens) - len(types))
    while len(tokens) % 32:
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(5)
    return Vocabulary(tokens=tokens, types=types, merges=merges, bos=1, eos=2)


def _sentencepiece(num_pieces: int = 150) -> Vocabulary:
    marked = "\u2581" + TRAINING_TEXT.translate({32: "\u2581", 10: "\u2581", 9: None, 13: None})
    pieces = ["".join(pair) for pair in _train(list(marked), num_pieces)]
    letters = sorted(set(marked))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(letters))]
    scores = [0.0] * 259 + [float(-rank) for rank in range(len(pieces) + len(letters))]
    while len(tokens) % 32:
        tokens.append(f"unused{len(tokens)}")
        types.append(5)
        scores.append(-1e6)
    return Vocabulary(tokens=tokens, types=types, scores=scores, bos=1, eos=2)


def _train(symbols: list[str], count: int) -> list[tuple[str, str]]:
    """The most frequent neighbours, merged one after the other; ties by the pair itself."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        counts: dict[tuple[str, str], int] = {}
        for pair in itertools.pairwise(symbols):
            counts[pair] = counts.get(pair, 0) + 1
        made = {"".join(pair) for pair in merges}
        best = max(
            (pair for pair in counts if "".join(pair) not in made), key=lambda pair: (counts[pair], pair)
        )
        merges.append(best)
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == best:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged
    return merges


def _write_vocabulary(writer: gguf.GGUFWriter, model: TinyGguf) -> None:
    words = vocabulary(model.tokenizer)
    writer.add_tokenizer_model(model.tokenizer)
    if (pre := "default" if words.scores else model.pre) is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(words.tokens)
    if words.scores:
        writer.add_token_scores(words.scores)
    writer.add_token_types(words.types)
    if words.merges:
        writer.add_token_merges(words.merges)
    writer.add_bos_token_id(words.bos)
    writer.add_eos_token_id(words.eos)


def _random(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Large enough that a wrong position or a forgotten weight shows in the logits."""
    values = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return (values * np.float32(0.2) + np.float32(not name.endswith("bias"))).astype(np.float32)
    scale = 0.3 if "embed" in name or "lm_head" in name else 1.2 * shape[-1] ** -0.5
    return (values * np.float32(scale)).astype(np.float32)


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, np.float64):
        writer.add_float64(name, float(value))
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: Array, kind: gguf.GGMLQuantizationType) -> None:
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(values))
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    elif kind == gguf.GGMLQuantizationType.Q4_K:
        writer.add_tensor(name, _random_q4_k(values), raw_dtype=kind)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _random_q4_k(like: Array) -> Array:
    """Random blocks: `gguf` reads this type and does not write it. Scale, minimum, 12 bytes, 128 bytes."""
    generator = np.random.Generator(np.random.PCG64(like.shape[0]))
    raw = generator.integers(0, 256, (like.shape[0], like.shape[1] // 256, 144), dtype=np.uint8)
    scales = np.array([2e-4, 1.5e-3], dtype=np.float16)
    raw[..., :4] = scales.view(np.uint8)
    return raw.reshape(like.shape[0], -1)
