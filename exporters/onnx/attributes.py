"""A graph's node attributes against the student's config.

Logits show a wrong attribute only as far as prompts, weights and tolerance let it through: an epsilon ten
times too large may move a small model's logits by less than int4's tolerance. Read from the graph, it is
exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE, read_config
from compressor.models.config.class_defaults import value_of
from compressor.models.dims import Dims
from exporters.onnx.builder import GRAPH_FILE, load_graph

_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
# The second where the runtime has no kernel of the first: keys and values are repeated before it.
_GROUPED, _REPEATED = "GroupQueryAttention", "MultiHeadAttention"
# Attributes are 32-bit floats.
_PRECISION = 1e-6


def check_attributes(directory: Path, student: Path, dims: Dims) -> int:
    """Compare the norms' epsilon and the attention's head counts and scale with the student's config.

    Returns the number of attributes compared; a VerificationError names the node, and what it has and should
    have.
    """
    epsilon = {"epsilon": value_of(read_config(student), dims.family.norm_epsilon)}
    heads = {"num_heads": dims.num_attention_heads, "scale": 1 / math.sqrt(dims.head_dim)}
    wanted = {
        **dict.fromkeys(_NORMS, epsilon),
        _GROUPED: {**heads, "kv_num_heads": dims.num_key_value_heads},
        _REPEATED: heads,
    }
    nodes = [node for node in load_graph(directory).graph.node if node.op_type in wanted]
    num_layers = dims.num_hidden_layers
    for operators, least in ((_NORMS, 2 * num_layers + 1), ((_GROUPED, _REPEATED), num_layers)):
        found = sum(node.op_type in operators for node in nodes)
        if found < least:
            raise VerificationError(
                f"the graph has too few nodes of {' or '.join(operators)}",
                where=str(directory / GRAPH_FILE),
                expected=f"at least {least}",
                found=found,
            )
    return sum(_check_node(node, wanted[node.op_type]) for node in nodes)


def _check_node(node: Any, wanted: Mapping[str, float]) -> int:
    stated = {each.name: each.f if each.type == each.FLOAT else each.i for each in node.attribute}
    for name, value in wanted.items():
        if not math.isclose(stated.get(name, math.nan), value, rel_tol=_PRECISION):
            raise VerificationError(
                f"the graph's {name} is not what the student's {CONFIG_FILE} says",
                where=f"{GRAPH_FILE}: {node.name}",
                expected=f"{value:.6g}",
                found=f"{stated[name]:.6g}" if name in stated else "no such attribute",
            )
    return len(wanted)
