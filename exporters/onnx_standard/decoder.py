"""A decoder with a KV cache as a graph of standard operators, from a Hugging Face config.

Inputs are `input_ids` and `position_ids` `[batch, sequence]`, `attention_mask` `[batch, past + sequence]`
(zero where a sequence is padded on the left) and per layer `past_key_values.N.key` and `.value`
`[batch, KV heads, past, head_dim]`; outputs are `logits` `[batch, sequence, vocabulary]`, float32, and
`present.N.key` and `.value`, the cache of the next step.

Linear layers and what lies between them compute in 16 bits; norms, rotation and the softmax in float32, as
the model classes of transformers compute them. Weights are stored as in the checkpoint, `[out, in]`.

In FP8 the input of every linear layer of the decoder goes through QuantizeLinear and DequantizeLinear, and
its weight through DequantizeLinear. Scales are float32, as they were calibrated; as 16-bit numbers they
would lose bits, or all of them. Before opset 23 QuantizeLinear wants its input in the dtype of its scale,
and what ONNX Runtime 1.31 has of the newer form fails: hence a cast to float32 before the pair, and one
back behind it. TensorRT makes one FP8 matrix product of the six nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch

from compressor.models.config.class_defaults import declared_window, value_of
from compressor.models.config.fields import layer_types
from compressor.models.dims import Dims
from compressor.quantization.coverage import INPUT_SCALE, K_SCALE, V_SCALE, WEIGHT_SCALE
from exporters.onnx_standard.graph import GraphWriter, StoredTensor

LOGITS, PAST, PRESENT = "logits", "past_key_values", "present"
HALVES = ("key", "value")
FREQUENCIES = "rope.inverse_frequencies"
# Added to the scores of keys that a query must not see; far below any score, and finite.
_MASKED = -1e30


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotation: a float32 frequency per pair of channels, and the factor of cosine and sine."""

    inverse_frequencies: torch.Tensor
    factor: float


def build_decoder(
    config: dict[str, object],
    dims: Dims,
    tensors: Mapping[str, StoredTensor],
    rope: Rope,
    *,
    dtype: torch.dtype,
) -> ir.Model:
    """The graph of a config, which stores these tensors; layers with scales among them are FP8."""
    return _Decoder(config, dims, tensors, rope, dtype).build()


def windows_of(config: dict[str, object], dims: Dims) -> list[int | None]:
    """By layer, how many tokens it attends to; None: all."""
    window = declared_window(config)
    if window is None or window >= value_of(config, "max_position_embeddings"):
        return [None] * dims.num_hidden_layers
    if not dims.family.window_by_layer:
        return [window] * dims.num_hidden_layers
    kinds = layer_types(config, dims) or ["full_attention"] * dims.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


class _Decoder:
    def __init__(
        self,
        config: dict[str, object],
        dims: Dims,
        tensors: Mapping[str, StoredTensor],
        rope: Rope,
        dtype: torch.dtype,
    ) -> None:
        self._dims, self._family, self._tensors, self._rope = dims, dims.family, tensors, rope
        self._dtype = dtype
        self._windows = windows_of(config, dims)
        self._epsilon = float(value_of(config, dims.family.norm_epsilon))
        self._graph = GraphWriter()
        self._masks: dict[int | None, ir.Value] = {}

    def build(self) -> ir.Model:
        graph, dims, family = self._graph, self._dims, self._family
        token_ids = graph.input("input_ids", torch.int64, ("batch", "sequence"))
        mask = graph.input("attention_mask", torch.int64, ("batch", "total"))
        positions = graph.input("position_ids", torch.int64, ("batch", "sequence"))
        cache_shape = ("batch", dims.num_key_value_heads, "past", dims.head_dim)
        self._past = [
            {half: graph.input(f"{PAST}.{index}.{half}", self._dtype, cache_shape) for half in HALVES}
            for index in range(dims.num_hidden_layers)
        ]
        self._prepare_masks(token_ids, mask)
        self._prepare_rotation(positions)
        hidden = graph.op(family.embedding, "Gather", self._weight(f"{family.embedding}.weight"), token_ids)
        caches: list[tuple[ir.Value, ir.Value]] = []
        for index in range(dims.num_hidden_layers):
            hidden, cache = self._layer(index, hidden)
            caches.append(cache)
        hidden = self._norm(family.final_norm, hidden)
        head = family.embedding if dims.tie_word_embeddings else family.lm_head
        scores = self._product(family.lm_head, hidden, self._weight(f"{head}.weight"))
        logits = graph.cast(family.lm_head, scores, torch.float32)
        graph.output(logits, LOGITS, torch.float32, ("batch", "sequence", dims.vocab_size))
        for index, cache in enumerate(caches):
            for half, value in zip(HALVES, cache, strict=True):
                shape = ("batch", dims.num_key_value_heads, "total", dims.head_dim)
                graph.output(value, f"{PRESENT}.{index}.{half}", self._dtype, shape)
        return graph.model(dims.model_type)

    def _layer(self, index: int, hidden: ir.Value) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        at = f"{self._family.layers}.{index}"
        read = self._norm(f"{at}.{self._family.module('attention_norm')}", hidden)
        attended, cache = self._attention(index, at, read)
        hidden = self._graph.op(at, "Add", hidden, attended)
        read = self._norm(f"{at}.{self._family.module('mlp_norm')}", hidden)
        return self._graph.op(at, "Add", hidden, self._mlp(at, read)), cache

    def _attention(self, index: int, at: str, x: ir.Value) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        graph, dims, family = self._graph, self._dims, self._family
        here = f"{at}.{family.module('o').rpartition('.')[0]}"
        projected = self._projections(at, ("q", "k", "v"), x)
        query, key, value = (
            self._heads(here, each, number)
            for each, number in zip(
                projected,
                (dims.num_attention_heads, dims.num_key_value_heads, dims.num_key_value_heads),
                strict=True,
            )
        )
        if family.has_head_norms:
            query = self._norm(f"{at}.{family.module('q_norm')}", query)
            key = self._norm(f"{at}.{family.module('k_norm')}", key)
        scale = torch.tensor(1 / math.sqrt(dims.head_dim), dtype=torch.float32)
        query = graph.op(here, "Mul", self._rotated(here, query), graph.constant("attention.scale", scale))
        query = graph.cast(here, query, self._dtype)
        key = graph.cast(here, self._rotated(here, key), self._dtype)
        key = self._rounded(f"{at}.{family.module('k')}{K_SCALE}", here, key)
        value = self._rounded(f"{at}.{family.module('v')}{V_SCALE}", here, value)
        key = graph.op(here, "Concat", self._past[index]["key"], key, axis=2)
        value = graph.op(here, "Concat", self._past[index]["value"], value, axis=2)
        transposed = graph.op(here, "Transpose", self._repeated(here, key), perm=[0, 1, 3, 2])
        scores = graph.cast(here, graph.op(here, "MatMul", query, transposed), torch.float32)
        scores = graph.op(here, "Add", scores, self._masks[self._windows[index]])
        weights = graph.cast(here, graph.op(here, "Softmax", scores, axis=-1), self._dtype)
        mixed = graph.op(here, "MatMul", weights, self._repeated(here, value))
        mixed = graph.op(here, "Transpose", mixed, perm=[0, 2, 1, 3])
        width = dims.num_attention_heads * dims.head_dim
        joined = graph.op(here, "Reshape", mixed, self._shape("joined_heads", 0, 0, width))
        return self._linear(f"{at}.{family.module('o')}", joined), (key, value)

    def _mlp(self, at: str, x: ir.Value) -> ir.Value:
        graph, family = self._graph, self._family
        here = f"{at}.{family.module('down').rpartition('.')[0]}"
        if family.gated_mlp:
            gate, up = self._projections(at, ("gate", "up"), x)
            gate = graph.op(here, "Mul", gate, graph.op(here, "Sigmoid", gate))
            inner = graph.op(here, "Mul", gate, up)
        else:
            (up,) = self._projections(at, ("up",), x)
            positive = graph.op(here, "Relu", up)
            inner = graph.op(here, "Mul", positive, positive)
        return self._linear(f"{at}.{family.module('down')}", inner)

    def _projections(self, at: str, parts: tuple[str, ...], x: ir.Value) -> list[ir.Value]:
        """The parts' outputs, each from a linear layer of its own or cut out of a joined one's."""
        weight = self._family.find(parts[0])
        assert weight is not None
        if len(weight.rows) == 1:
            return [self._linear(f"{at}.{self._family.module(part)}", x) for part in parts]
        name = f"{at}.{weight.module}"
        sizes = [self._dims.size(weight.rows[part]) for part in parts]
        cut = self._graph.constant(f"{weight.module}.sizes", torch.tensor(sizes))
        joined = self._linear(name, x)
        return list(self._graph.split(name, "Split", joined, cut, num_outputs=len(parts), axis=-1))

    def _linear(self, name: str, x: ir.Value) -> ir.Value:
        """A linear layer, in FP8 where it has scales."""
        graph, weight = self._graph, self._weight(f"{name}.weight")
        if f"{name}{WEIGHT_SCALE}" in self._tensors:
            x = self._rounded(f"{name}{INPUT_SCALE}", name, x)
            scale = self._weight(f"{name}{WEIGHT_SCALE}")
            weight = graph.op(name, "DequantizeLinear", weight, scale, self._zero())
            weight = graph.cast(name, weight, self._dtype)
        made = self._product(name, x, weight)
        if f"{name}.bias" in self._tensors:
            made = graph.op(name, "Add", made, self._weight(f"{name}.bias"))
        return made

    def _product(self, name: str, x: ir.Value, weight: ir.Value) -> ir.Value:
        """X times a weight stored as `[out, in]`."""
        transposed = self._graph.op(name, "Transpose", weight, perm=[1, 0])
        return self._graph.op(name, "MatMul", x, transposed)

    def _rounded(self, scale_name: str, at: str, x: ir.Value) -> ir.Value:
        """X rounded to E4M3 with a scale; as it is where there is none of this name."""
        if scale_name not in self._tensors:
            return x
        graph, scale = self._graph, self._weight(scale_name)
        wide = graph.cast(at, x, torch.float32)
        codes = graph.op(at, "QuantizeLinear", wide, scale, self._zero())
        return graph.cast(at, graph.op(at, "DequantizeLinear", codes, scale, self._zero()), self._dtype)

    def _norm(self, name: str, x: ir.Value) -> ir.Value:
        """Root mean square norm, or layer norm where the family has one."""
        graph = self._graph
        wide, weight = graph.cast(name, x, torch.float32), self._weight(f"{name}.weight")
        if self._family.norm_has_bias:
            offset = graph.constant("norm.offset", torch.tensor(self._family.norm_offset))
            scale = graph.op(name, "Add", graph.cast(name, weight, torch.float32), offset)
            bias = graph.cast(name, self._weight(f"{name}.bias"), torch.float32)
            made = graph.op(
                name, "LayerNormalization", wide, scale, bias, axis=-1, epsilon=float(self._epsilon)
            )
            return graph.cast(name, made, self._dtype)
        last = graph.constant("last_axis", torch.tensor([-1]))
        epsilon = graph.constant("norm.epsilon", torch.tensor(self._epsilon))
        mean = graph.op(name, "ReduceMean", graph.op(name, "Mul", wide, wide), last, keepdims=1)
        root = graph.op(name, "Sqrt", graph.op(name, "Add", mean, epsilon))
        normed = graph.cast(name, graph.op(name, "Div", wide, root), self._dtype)
        return graph.op(name, "Mul", normed, weight)

    def _heads(self, at: str, x: ir.Value, number: int) -> ir.Value:
        """`[batch, sequence, heads * head_dim]` as `[batch, heads, sequence, head_dim]`."""
        shape = self._shape(f"{number}_heads", 0, 0, number, self._dims.head_dim)
        return self._graph.op(at, "Transpose", self._graph.op(at, "Reshape", x, shape), perm=[0, 2, 1, 3])

    def _repeated(self, at: str, x: ir.Value) -> ir.Value:
        """Keys or values, each head once for every query head of its group."""
        dims, graph = self._dims, self._graph
        repeats = dims.num_attention_heads // dims.num_key_value_heads
        if repeats == 1:
            return x
        axis = graph.constant("group_axis", torch.tensor([2]))
        groups = graph.constant("group_shape", torch.tensor([1, 1, repeats, 1, 1]))
        grouped = graph.op(at, "Expand", graph.op(at, "Unsqueeze", x, axis), groups)
        shape = self._shape("repeated_heads", 0, dims.num_attention_heads, -1, dims.head_dim)
        return graph.op(at, "Reshape", grouped, shape)

    def _prepare_rotation(self, positions: ir.Value) -> None:
        """Cosine and sine of every position and rotated pair, `[batch, 1, sequence, pairs]`."""
        graph = self._graph
        axes = graph.constant("rope.axes", torch.tensor([1, 3]))
        wide = graph.cast("rope", graph.op("rope", "Unsqueeze", positions, axes), torch.float32)
        angles = graph.op("rope", "Mul", wide, graph.constant(FREQUENCIES, self._rope.inverse_frequencies))
        factor = graph.constant("rope.factor", torch.tensor(self._rope.factor))
        self._cosine, self._sine = (
            graph.op("rope", "Mul", graph.op("rope", function, angles), factor) for function in ("Cos", "Sin")
        )

    def _rotated(self, at: str, x: ir.Value) -> ir.Value:
        """X in float32, its first channels turned in pairs: the first half with the second."""
        graph, pairs = self._graph, self._rope.inverse_frequencies.numel()
        rest = self._dims.head_dim - 2 * pairs
        sizes = torch.tensor([pairs, pairs, rest] if rest else [pairs, pairs])
        cut = graph.constant("rope.sizes", sizes)
        wide = graph.cast(at, x, torch.float32)
        first, second, *kept = graph.split(at, "Split", wide, cut, num_outputs=len(sizes), axis=-1)

        def turned(operator: str, one: ir.Value, other: ir.Value) -> ir.Value:
            along = graph.op(at, "Mul", one, self._cosine)
            return graph.op(at, operator, along, graph.op(at, "Mul", other, self._sine))

        return graph.op(
            at, "Concat", turned("Sub", first, second), turned("Add", second, first), *kept, axis=-1
        )

    def _prepare_masks(self, token_ids: ir.Value, mask: ir.Value) -> None:
        """What is added to the scores, `[batch, 1, sequence, past + sequence]`, by window."""
        graph, at = self._graph, "mask"
        zero, one = (graph.constant(f"mask.{n}", torch.tensor(n)) for n in (0, 1))
        columns, rows = (graph.constant(f"mask.axis_{n}", torch.tensor([n])) for n in (0, 1))

        def length(value: ir.Value, axis: int) -> ir.Value:
            shape = graph.op(at, "Shape", value, start=axis, end=axis + 1)
            return graph.op(at, "Squeeze", shape, columns)

        total = length(mask, 1)
        past = graph.op(at, "Sub", total, length(token_ids, 1))
        keys = graph.op(at, "Unsqueeze", graph.op(at, "Range", zero, total, one), columns)
        queries = graph.op(at, "Unsqueeze", graph.op(at, "Range", past, total, one), rows)
        both = graph.constant("mask.head_axes", torch.tensor([1, 2]))
        present = graph.op(at, "Unsqueeze", graph.cast(at, mask, torch.bool), both)
        causal = graph.op(at, "And", graph.op(at, "LessOrEqual", keys, queries), present)
        nothing, masked = (
            graph.constant(f"mask.{name}", torch.tensor(value, dtype=torch.float32))
            for name, value in (("visible", 0.0), ("hidden", _MASKED))
        )
        for window in sorted(set(self._windows), key=lambda size: size or 0):
            seen = causal
            if window is not None:
                size = graph.constant("mask.window", torch.tensor(window))
                seen = graph.op(
                    at, "And", causal, graph.op(at, "Less", graph.op(at, "Sub", queries, keys), size)
                )
            self._masks[window] = graph.op(at, "Where", seen, nothing, masked)

    def _shape(self, name: str, *sizes: int) -> ir.Value:
        """A target of Reshape; 0 keeps a dimension."""
        return self._graph.constant(f"shape.{name}", torch.tensor(sizes))

    def _zero(self) -> ir.Value:
        return self._graph.constant("fp8_zero", torch.zeros(()).to(torch.float8_e4m3fn))

    def _weight(self, name: str) -> ir.Value:
        return self._graph.stored(name, self._tensors[name])
