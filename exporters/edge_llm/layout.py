"""Where TensorRT-Edge-LLM's graph keeps each part of a model, found by walking it from the logits back.

The names of stored tensors say little: weights are transposed and numbered, equal tensors are stored once,
q, k and v are joined where they are not FP8. So every part is known by what the graph computes with it, and
whatever else the graph would compute is refused: another operator, attribute or constant, a swapped input,
a missing quantisation. The walk is that of `tensorrt-edgellm` 0.11.

Legend: H hidden, V vocabulary, N query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from compressor.models.dims import Dims
from exporters.edge_llm.graph import EdgeGraph

PLUGIN, PLUGIN_DOMAIN = "AttentionPlugin", "trt_edgellm"
FLOAT32, FLOAT16, FLOAT8 = 1, 10, 17
_EMBEDDED, _CHOSEN, _LOGITS = "inputs_embeds", "logits_indices", "logits"
# The plugin's inputs before and after the norms of heads.
_BEFORE = ("query_lengths", "rope_rotary_cos_sin", "past_lengths", "kv_page_table")
_AFTER = (
    *("query_start_offsets", "attention_sequence_lengths", "execution_phase_marker"),
    "context_sequence_count_carrier",
)
# What the plugin could do for other models.
_OFF = (
    *("enable_tree_attention", "enable_context_mask_selector", "enable_vision_block_attention"),
    *("qk_norm_post_rope", "enable_kv_shared", "enable_attention_sink", "enable_contiguous_query_swa"),
)
_NO_WINDOW = -1
# Read by the plugin where heads have norms; else a constant of its own.
_UNREAD_EPSILON = "rms_norm_eps"


@dataclass(frozen=True, kw_only=True)
class StoredLinear:
    """A product with a stored matrix.

    Attributes:
        parts: The linear layers that its rows hold, one after the other: `q`, or `q`, `k` and `v`.
        weight: Name of the stored matrix, `[in, out]` where it is transposed, else `[out, in]`.
        bias: Name of what is added.
        weight_scale: Name of an FP8 matrix's scale.
        input_scale: Name of the scale that the input is rounded to FP8 with.
    """

    parts: tuple[str, ...]
    weight: str
    transposed: bool
    bias: str | None = None
    weight_scale: str | None = None
    input_scale: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A decoder layer: its products, its norms by part, and the scales of an FP8 KV cache."""

    linears: tuple[StoredLinear, ...]
    norms: Mapping[str, str]
    cache_scales: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """Everything that a graph stores of a model."""

    layers: tuple[StoredLayer, ...]
    final_norm: str
    head: str


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The walk through one graph, of a model with these dimensions.

    Attributes:
        epsilon: Of the norms.
        fp8: Whether the layers' matrices and inputs are rounded to FP8.
        fp8_kv_cache: Whether keys and values are.
    """

    graph: EdgeGraph
    dims: Dims
    epsilon: float
    fp8: bool
    fp8_kv_cache: bool
    _lengths: set[str] = field(default_factory=set)

    def model(self) -> StoredModel:
        """Walk the whole graph; a VerificationError names the first thing that is not the model's."""
        dims, graph = self.dims, self.graph
        cached = [f"present_key_values_{index}" for index in range(dims.num_hidden_layers)]
        graph.expect_value(str([_LOGITS, *cached]), str(graph.outputs), what="its outputs")
        value, head = self._head()
        stream, final_norm = self._norm(value)
        layers = []
        for index in reversed(range(dims.num_hidden_layers)):
            stream, layer = self._layer(index, stream)
            layers.append(layer)
        embedded, axes = graph.step(stream, "Unsqueeze")
        graph.expect_value(_EMBEDDED, embedded, what="the embedded tokens")
        graph.expect_constant(axes, [1], what="shape")
        graph.expect_nothing_left()
        return StoredModel(layers=tuple(reversed(layers)), final_norm=final_norm, head=head)

    def _head(self) -> tuple[str, str]:
        """From the logits to the last norm's output; returns it and the LM head's name."""
        graph, dims = self.graph, self.dims
        cast = self._reshaped(_LOGITS, [-1, dims.vocab_size])
        (product,) = graph.step(cast, "Cast", attributes={"to": FLOAT32})
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        rows, head = graph.step(product, "Gemm", attributes=attributes)
        table, indices = graph.step(rows, "Gather", attributes={"axis": 0})
        graph.expect_value(_CHOSEN, self._reshaped(indices, [-1]), what="the positions of logits")
        return self._reshaped(table, [-1, dims.hidden_size]), head

    def _layer(self, index: int, after: str) -> tuple[str, StoredLayer]:
        """From a layer's output to its input; returns that and the layer."""
        graph, has_bias = self.graph, self.dims.family.qkv_has_bias
        middle, down_out = graph.step(after, "Add")
        product, down = self._linear(down_out, ("down",))
        activated, up_out = graph.step(product, "Mul")
        gate_out, sigmoid = graph.step(activated, "Mul")
        (opened,) = graph.step(sigmoid, "Sigmoid")
        graph.expect_value(gate_out, opened, what="the activation")
        gate_in, gate = self._linear(gate_out, ("gate",))
        up_in, up = self._linear(up_out, ("up",))
        graph.expect_value(gate_in, up_in, what="the up projection")
        stream, mlp_norm = self._norm(gate_in)
        graph.expect_value(middle, stream, what="the MLP's norm")
        before, o_out = graph.step(middle, "Add")
        attended, output = self._linear(o_out, ("o",))
        joined, heads, cache_scales = self._attention(index, self._heads(attended))
        attention_in, projections = self._projections(joined, has_bias=has_bias)
        stream, attention_norm = self._norm(attention_in)
        graph.expect_value(before, stream, what="the attention's norm")
        return before, StoredLayer(
            linears=(*projections, output, gate, up, down),
            norms={"attention_norm": attention_norm, "mlp_norm": mlp_norm, **heads},
            cache_scales=cache_scales,
        )

    def _norm(self, value: str) -> tuple[str, str]:
        """From the output of a root-mean-square norm to its input; returns that and its weight's name."""
        graph = self.graph
        weight, normed = graph.step(value, "Mul")
        (scaled,) = graph.step(normed, "Cast", attributes={"to": FLOAT16})
        wide, inverse = graph.step(scaled, "Mul")
        (root,) = graph.step(inverse, "Reciprocal")
        (shifted,) = graph.step(root, "Sqrt")
        mean, epsilon = graph.step(shifted, "Add")
        graph.expect_constant(epsilon, [_float32(self.epsilon)], what="norm's epsilon")
        attributes = {"keepdims": 1, "noop_with_empty_axes": 0}
        squared, axes = graph.step(mean, "ReduceMean", attributes=attributes)
        graph.expect_constant(axes, [-1], what="axis of a norm")
        base, power = graph.step(squared, "Pow")
        graph.expect_constant(power, [2.0], what="power in a norm")
        graph.expect_value(wide, base, what="a norm's mean")
        (stream,) = graph.step(wide, "Cast", attributes={"to": FLOAT32})
        return stream, weight

    def _projections(self, value: str, *, has_bias: bool) -> tuple[str, tuple[StoredLinear, ...]]:
        """From the joined q, k and v to their input."""
        names = ("q", "k", "v")
        if not self.fp8:
            found, joined = self._linear(value, names, has_bias=has_bias)
            return found, (joined,)
        outputs = self.graph.step(value, "Concat", attributes={"axis": -1})
        read = [
            self._linear(out, (name,), has_bias=has_bias) for out, name in zip(outputs, names, strict=True)
        ]
        for found, _ in read[1:]:
            self.graph.expect_value(read[0][0], found, what="a projection")
        return read[0][0], tuple(linear for _, linear in read)

    def _linear(
        self, value: str, parts: tuple[str, ...], *, has_bias: bool = False
    ) -> tuple[str, StoredLinear]:
        """From a product to its input; returns that and where the matrix lies."""
        graph, bias = self.graph, None
        if has_bias:
            value, bias = graph.step(value, "Add")
        states, matrix = graph.step(value, "MatMul")
        if not self.fp8:
            return states, StoredLinear(parts=parts, weight=matrix, transposed=True, bias=bias)
        (straight,) = graph.step(matrix, "Transpose", attributes={"perm": [1, 0]})
        weight, weight_scale = graph.step(straight, "DequantizeLinear")
        rounded, scale = graph.step(states, "DequantizeLinear")
        exact, input_scale = graph.step(rounded, "QuantizeLinear", attributes={"output_dtype": FLOAT8})
        graph.expect_value(input_scale, scale, what="the scale of a rounded input")
        return exact, StoredLinear(
            parts=parts,
            weight=weight,
            transposed=False,
            bias=bias,
            weight_scale=weight_scale,
            input_scale=input_scale,
        )

    def _heads(self, value: str) -> str:
        """From the output projection's input to what the attention made, `[tokens, 1, N, D]` before it."""
        graph, dims = self.graph, self.dims
        attended, shape = graph.step(value, "Reshape", ignoring=("allowzero",))
        tokens, one, width = graph.step(shape, "Concat", attributes={"axis": 0})
        (embedded,) = graph.step(tokens, "Shape", attributes={"start": 0, "end": 1})
        graph.expect_value(_EMBEDDED, embedded, what="the number of tokens")
        graph.expect_constant(one, [1], what="shape")
        graph.expect_constant(width, [dims.num_attention_heads * dims.head_dim], what="shape")
        return attended

    def _attention(self, index: int, value: str) -> tuple[str, dict[str, str], tuple[float, float] | None]:
        """From the attention's output to the joined q, k and v.

        Returns them, the names of the norms of heads, and the cache's scales.
        """
        graph, dims = self.graph, self.dims
        has_norms = dims.family.has_head_norms
        expected = {
            "num_q_heads": dims.num_attention_heads,
            "num_kv_heads": dims.num_key_value_heads,
            "head_size": dims.head_dim,
            "sliding_window_size": _NO_WINDOW,
            "attention_scale": _float32(dims.head_dim**-0.5),
            "skip_softmax_scale_factor": 0.0,
            "enable_fp8_kv_cache": int(self.fp8_kv_cache),
            "enable_qk_norm": int(has_norms),
            **dict.fromkeys(_OFF, 0),
        }
        ignored: tuple[str, ...] = ("plugin_version", "_outputs", "qkv_scales")
        if has_norms:
            expected[_UNREAD_EPSILON] = _float32(self.epsilon)
        else:
            ignored = (*ignored, _UNREAD_EPSILON)
        graph.expect_value(
            str([value, f"present_key_values_{index}"]),
            str(list(graph.maker(value).output)),
            what=f"the attention of layer {index}",
        )
        inputs = graph.step(value, PLUGIN, domain=PLUGIN_DOMAIN, attributes=expected, ignoring=ignored)
        joined, cache, *rest = inputs
        num_norms = 2 if has_norms else 0
        heads = rest[len(_BEFORE) : len(_BEFORE) + num_norms]
        named = [cache, *rest[: len(_BEFORE)], *rest[len(_BEFORE) + num_norms :]]
        graph.expect_value(
            str([f"past_key_values_{index}", *_BEFORE, *_AFTER]), str(named), what="the attention's inputs"
        )
        width = (dims.num_attention_heads + 2 * dims.num_key_value_heads) * dims.head_dim
        scales = self._cache_scales(value)
        norms = dict(zip(("q_norm", "k_norm"), heads, strict=has_norms))
        return self._reshaped(joined, [-1, width]), norms, scales

    def _cache_scales(self, value: str) -> tuple[float, float] | None:
        """The scales of keys and values; the queries' must be 1, and without an FP8 cache all of them."""
        query, key, content = self.graph.attribute(value, "qkv_scales")
        self.graph.expect_value("1.0", str(query), what="the queries' scale")
        if self.fp8_kv_cache:
            return float(key), float(content)
        self.graph.expect_value("[1.0, 1.0]", str([key, content]), what="the scales of keys and values")
        return None

    def _reshaped(self, value: str, shape: list[int]) -> str:
        """The input of a reshape to this shape."""
        found, stored = self.graph.step(value, "Reshape", ignoring=("allowzero",))
        self.graph.expect_constant(stored, shape, what="shape")
        return found


def _float32(value: float) -> float:
    """A number as float32 holds it."""
    return torch.tensor(value, dtype=torch.float32).item()
