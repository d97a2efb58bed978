"""Faults of TensorRT-LLM checkpoints and of ONNX graphs, in their own names and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.corruptions.faults import (
    Fault,
    Plant,
    assign,
    chosen,
    cut,
    delete,
    drop,
    faults_of,
    fields,
    flip_bit,
    regroup,
    set_value,
    swap,
    swap_rows,
    tensors,
    third_nonzero,
)
from tests.corruptions.formats import (
    TRT_LAYER,
    Tensors,
    array_of,
    change_graph,
    initialiser,
    set_array,
    swap_contents,
)

RANK, TRT_CONFIG = "checkpoint/rank0.safetensors", "checkpoint/config.json"
GENAI = "genai_config.json"
_WIDTH = 64  # rows of q, of k and of v
_HEAD, _CONTEXT, _BASE = 16, 2048, 10_000.0


def trtllm_faults(*, fp8: bool) -> list[Fault]:
    layer = TRT_LAYER.format(index=0)
    qkv, first, second = f"{layer}attention.qkv.weight", slice(0, _WIDTH), slice(_WIDTH, 2 * _WIDTH)
    third = slice(2 * _WIDTH, 3 * _WIDTH)
    changes: dict[str, Callable[[Tensors], None]] = {
        "flipped bit": flip_bit(f"{layer}mlp.gate.weight"),
        "flipped bit, embedding": flip_bit("transformer.vocab_embedding.weight"),
        "gate and up": swap(f"{layer}mlp.gate.", f"{layer}mlp.fc."),
        "q and k": swap_rows(qkv, first, second),
        "k and v": swap_rows(qkv, second, third),
        "layers permuted": swap(layer, TRT_LAYER.format(index=1)),
        "norms swapped": swap(f"{layer}input_layernorm.", f"{layer}post_layernorm."),
        "tensor missing": drop(f"{layer}attention.dense.weight"),
        "third non-zero": third_nonzero(f"{layer}mlp.proj.weight"),
    }
    if fp8:
        scale = f"{layer}mlp.gate.weights_scaling_factor"
        inputs = f"{layer}mlp.gate.activation_scaling_factor"
        changes |= {
            "scale dropped": drop(scale),
            "scale doubled": set_value(scale, lambda value: value * 2),
            "scale 1": set_value(scale, torch.ones_like),
            "input scale doubled": set_value(inputs, lambda value: value * 2),
            "input scale 1": set_value(inputs, torch.ones_like),
        }

    configs: dict[str, Callable[[dict[str, Any]], None]] = {
        "rope": assign(rotary_base=_BASE),
        "rope, kind": assign(position_embedding_type="learned_absolute"),
        "eps": assign(norm_epsilon=1e-5),
        "heads regrouped": regroup("head_size"),
        "activation": assign(hidden_act="gelu"),
    }
    return [
        *faults_of(changes, tensors, RANK),
        *faults_of(configs, fields, TRT_CONFIG),
        Fault(name="truncated", plant=cut(RANK)),
        Fault(name="weights deleted", plant=delete(RANK)),
        Fault(name="config deleted", plant=delete(TRT_CONFIG)),
    ]


def onnx_faults() -> list[Fault]:
    """Faults of an fp32 graph: its weights, its operators and its GenAI config."""
    changes = {**_float_weight_changes(), **_operator_changes()}
    return [*faults_of(changes, graph), *_genai_faults()]


def int4_faults() -> list[Fault]:
    """Faults of an int4 graph: packed weights, their scales, operators and GenAI config."""
    layer = "model.layers.0."
    gate, up = f"{layer}mlp.gate_proj.MatMul.weight", f"{layer}mlp.up_proj.MatMul.weight"

    @chosen
    def scaled(found: Any, factor: float) -> None:
        scales = _parts(found, gate)[1]
        set_array(scales, array_of(scales) * factor if factor != 1 else np.ones_like(array_of(scales)))

    def nibble(found: Any) -> None:
        packed = _parts(found, gate)[0]
        values = array_of(packed)
        values.reshape(-1)[1] ^= 1
        set_array(packed, values)

    @chosen
    def both(found: Any, first: str, second: str) -> None:
        for one, two in zip(_parts(found, first), _parts(found, second), strict=True):
            swap_contents(one, two)

    def layers(found: Any) -> None:
        for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "attn.qkv_proj", "attn.o_proj"):
            both(f"model.layers.0.{name}.MatMul.weight", f"model.layers.1.{name}.MatMul.weight")(found)
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            swap_contents(initialiser(found, f"layers.0.{name}"), initialiser(found, f"layers.1.{name}"))

    changes: dict[str, Callable[[Any], None]] = {
        "flipped bit": nibble,
        "gate and up": both(gate, up),
        "layers permuted": layers,
        "scale doubled": scaled(2),
        "scale 1": scaled(1),
        "scale dropped": lambda found: found.initializer.remove(_parts(found, gate)[1]),
        **_operator_changes(),
    }
    return [*faults_of(changes, graph), *_genai_faults()]


def graph(change: Callable[[Any], None]) -> Plant:
    return lambda directory: change_graph(directory, change)


def _parts(found: Any, name: str) -> list[Any]:
    """The packed values and the scales of a quantised weight."""
    stem = name.removesuffix(".weight")
    parts = sorted((t for t in found.initializer if t.name.startswith(stem)), key=lambda t: t.name)
    packed = [t for t in parts if "scale" not in t.name and "zp" not in t.name and "zero" not in t.name]
    scales = [t for t in parts if "scale" in t.name]
    assert len(packed) == len(scales) == 1, [t.name for t in parts]
    return [*packed, *scales]


def _float_weight_changes() -> dict[str, Callable[[Any], None]]:
    layer = "model.layers.0."
    gate, up = f"{layer}mlp.gate_proj.MatMul.weight", f"{layer}mlp.up_proj.MatMul.weight"
    qkv = f"{layer}attn.qkv_proj.MatMul.weight"

    def flip(found: Any) -> None:
        tensor = initialiser(found, gate)
        values = array_of(tensor)
        values.view(np.uint8).reshape(-1)[4] ^= 1
        set_array(tensor, values)

    @chosen
    def columns(found: Any, first: slice, second: slice) -> None:
        tensor = initialiser(found, qkv)
        values = array_of(tensor)
        kept = values[:, first].copy()
        values[:, first] = values[:, second]
        values[:, second] = kept
        set_array(tensor, values)

    def layers(found: Any) -> None:
        for tensor in [t for t in found.initializer if t.name.startswith(layer)]:
            swap_contents(tensor, initialiser(found, tensor.name.replace("layers.0.", "layers.1.")))

    def third(found: Any) -> None:
        tensor = initialiser(found, gate)
        values = array_of(tensor)
        column = values[:, 3]  # stored transposed: a column holds one output's inputs
        column[np.flatnonzero(column == 0)[0]] = 2.0**-10
        set_array(tensor, values)

    q, k, v = (slice(part * _WIDTH, (part + 1) * _WIDTH) for part in range(3))
    return {
        "flipped bit": flip,
        "gate and up": lambda found: swap_contents(initialiser(found, gate), initialiser(found, up)),
        "q and k": columns(q, k),
        "k and v": columns(k, v),
        "layers permuted": layers,
        "third non-zero": third,
    }


def _operator_changes() -> dict[str, Callable[[Any], None]]:
    def rope(found: Any) -> None:
        frequencies = _BASE ** (-np.arange(0, _HEAD, 2) / _HEAD)
        angles = np.arange(_CONTEXT)[:, None] * frequencies[None]
        set_array(initialiser(found, "cos_cache"), np.cos(angles))
        set_array(initialiser(found, "sin_cache"), np.sin(angles))

    @chosen
    def attribute(found: Any, name: str, change_it: Callable[[float], float]) -> None:
        attributes = [a for node in found.node for a in node.attribute if a.name == name]
        assert attributes
        for each in attributes:
            if each.type == each.FLOAT:
                each.f = change_it(each.f)
            else:
                each.i = int(change_it(each.i))

    def regroup(found: Any) -> None:
        attribute("num_heads", lambda value: value * 2)(found)
        attribute("kv_num_heads", lambda value: value * 2)(found)

    def activation(found: Any) -> None:
        for node in found.node:
            if node.op_type == "Sigmoid":
                node.op_type = "Tanh"

    return {
        "rope": rope,
        "eps": attribute("epsilon", lambda value: value * 10),
        "heads regrouped": regroup,
        "activation": activation,
        "attention scale": attribute("scale", lambda value: value / math.sqrt(2)),
    }


def _genai_faults() -> list[Fault]:
    def decoder(**values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda config: config["model"]["decoder"].update(values)

    def model(**values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda config: config["model"].update(values)

    changes = {
        "end token": model(eos_token_id=5),
        "context length": model(context_length=512),
        "GenAI heads": decoder(num_key_value_heads=8, num_attention_heads=8, head_size=8),
    }
    return [
        *faults_of(changes, fields, GENAI),
        Fault(name="truncated", plant=cut("model.onnx.data")),
        Fault(name="weights deleted", plant=delete("model.onnx.data")),
        Fault(name="graph deleted", plant=delete("model.onnx")),
        Fault(name="config deleted", plant=delete(GENAI)),
        Fault(name="tokenizer deleted", plant=delete("tokenizer.json")),
    ]


def run_faults() -> list[Fault]:
    """Faults of a whole run: what is missing, and documents that were edited."""

    @chosen
    def edited(directory: Path, name: str, old: str, new: str) -> None:
        text = (directory / name).read_text(encoding="utf-8")
        assert old in text
        (directory / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    stages = ("prune", "reconstruct", "distill", "sparsify", "quantize", "evaluate")
    places = tuple(f"stages/{name}" for name in stages)
    exports = ("exports/onnx", "exports/huggingface-fp8", "student")
    gone = {f"{name} deleted": name for name in (*places, *exports, "recipe.yaml", "plan.json", "README.md")}
    gone |= {f"{name} deleted": name for name in ("lineage.json", "sbom.cdx.json", "SHA256SUMS")}
    gone |= {
        "an export's record deleted": "exports/onnx/verification.json",
        "a stage's record deleted": "stages/prune/artifact.json",
    }
    return [
        *(Fault(name=name, plant=delete(path), only_plain=True) for name, path in gone.items()),
        Fault(name="edited card", plant=edited("README.md", "parameter", "weight")),
        Fault(name="edited recipe", plant=edited("recipe.yaml", "seq_len: 32", "seq_len: 64")),
        Fault(
            name="edited lineage", plant=edited("lineage.json", '"made_from": [', '"made_from": ["student",')
        ),
        Fault(name="edited bill", plant=edited("sbom.cdx.json", '"content": "', '"content": "0')),
        Fault(name="edited sums", plant=edited("SHA256SUMS", "README.md", "README")),
        Fault(name="edited plan", plant=edited("plan.json", '"num_parameters": ', '"num_parameters": 1')),
    ]
