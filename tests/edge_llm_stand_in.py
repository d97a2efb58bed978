"""A stand-in for NVIDIA's `tensorrt-edgellm` 0.11: its converter writes what the real one writes.

It is not that package. The graph that it makes has the operators, attributes and stored tensors that were
recorded from the real one (tests/golden/edge_llm, tests/oracles/record_edge_llm.py); what the real one does
is tested by `make oracles`.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
VERSION = "0.11.0"
_TYPES = {torch.float16: TensorProto.FLOAT16, torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN}
_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."
_PROGRAMS = {
    "converts": "from tests.edge_llm_stand_in import main\nmain()\n",
    "fails": "raise SystemExit(\"ValueError: model_type='llama' is not what this stand-in converts\")\n",
    "runs out of memory": f'raise SystemExit("RuntimeError: {_OUT_OF_MEMORY}")\n',
    "writes nothing": "",
}
_PAGE_TOKENS, _OPSET = 128, 24
_SEQUENCE_INPUTS = {
    "query_lengths": ["num_sequences"],
    "attention_sequence_lengths": ["num_sequences"],
    "past_lengths": ["num_sequences"],
    "query_start_offsets": ["num_sequences + 1"],
    "execution_phase_marker": ["execution_phase_extent"],
    "context_sequence_count_carrier": ["num_context_sequences"],
    "kv_page_table": ["num_sequences", 2, "max_pages_per_seq"],
}


def install(
    directory: Path, *, version: str = VERSION, behaviour: str = "converts", extra: bool = True
) -> str:
    """Make an environment with the stand-in; returns the path of its Python.

    `behaviour` is `converts`, `fails`, `runs out of memory` or `writes nothing`.
    """
    package = directory / "packages" / "tensorrt_edgellm" / "scripts"
    package.mkdir(parents=True)
    for init in (package.parent, package):
        (init / "__init__.py").write_text("")
    (package / "export.py").write_text(_PROGRAMS[behaviour], encoding="utf-8")
    for name in ("onnxscript", "onnx_graphsurgeon") if extra else ():
        (directory / "packages" / f"{name}.py").write_text("")
    if version:
        information = directory / "packages" / f"tensorrt_edgellm-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: tensorrt-edgellm\nVersion: {version}\n", encoding="utf-8"
        )
    python = directory / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{directory / "packages"}:{ROOT}" exec "{sys.executable}" "$@"\n',
        encoding="utf-8",
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(python)


def main() -> None:
    """What `python -m tensorrt_edgellm.scripts.export CHECKPOINT OUT` does."""
    checkpoint, out = map(Path, sys.argv[1:3])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not list(checkpoint.glob("*.py")), "the converter would run this code"
    print("INFO tensorrt_edgellm.scripts.export: [LLM] Loading checkpoint")
    write(checkpoint, out / "llm")


def write(checkpoint: Path, out: Path) -> None:
    """Write graph, data, config, embedding and tokenizer of a checkpoint, 16-bit or unified FP8."""
    out.mkdir(parents=True)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    weights = load_file(checkpoint / "model.safetensors")
    graph = _Graph(config, weights)
    model = helper.make_model(
        graph.build(),
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("trt_edgellm", 1)],
    )
    model.graph.node[0].doc_string = f'File "{__file__}", line 1, in forward'
    onnx.save_model(
        model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    (out / "config.json").write_text(json.dumps(_runtime_config(config, graph), indent=2), encoding="utf-8")
    embedding = weights["model.embed_tokens.weight"].to(torch.float16)
    save_file({"embedding": embedding}, out / "embedding.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(checkpoint / name, out / name)


def _runtime_config(config: dict[str, Any], graph: _Graph) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return {
        "model": config["model_type"],
        "spec_decode_type": "none",
        "engine_role": "llm",
        "edgellm_version": VERSION,
        **{
            name: config[name]
            for name in (
                *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
                *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
            )
        },
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {**rope, "type": rope["rope_type"]},
        "partial_rotary_factor": 1.0,
        "num_deepstack_features": 0,
        "use_vision_bidirectional_attention": False,
        "rms_norm_eps": config["rms_norm_eps"],
        "attention_scaling": config["head_dim"] ** -0.5,
        "ple_enabled": False,
        "num_ple_inputs": 0,
        "ple_hidden_size": 0,
        "kv_cache_dtype": "fp8" if graph.fp8_cache else "fp16",
        "eos_token_id": [config["eos_token_id"]],
    }


class _Graph:
    """The recorded graph, node by node in its order."""

    def __init__(self, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        self.config, self.weights = config, weights
        self.fp8 = "quantization_config" in config
        self.fp8_cache = any(name.endswith(".k_scale") for name in weights)
        self.nodes: list[Any] = []
        self.stored: dict[bytes, Any] = {}
        self.heads, self.keys = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.hidden = config["head_dim"], config["hidden_size"]

    def build(self) -> Any:
        self.tokens = self.node("Shape", ["inputs_embeds"], start=0, end=1)
        stream = self.node("Unsqueeze", ["inputs_embeds", self.integers([1])])
        self.shape: str | None = None
        for index in range(self.config["num_hidden_layers"]):
            stream = self.layer(f"model.layers.{index}.", index, stream)
        normed = self.norm("model.norm", stream)
        rows = self.reshape(normed, [-1, self.hidden])
        chosen = self.node("Reshape", ["logits_indices", self.integers([-1])], allowzero=0)
        found = self.node("Gather", [rows, chosen], axis=0)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        stored = self.tensor(head.to(torch.float16))
        product = self.node("Gemm", [found, stored], alpha=1.0, beta=1.0, transA=0, transB=1)
        logits = self.node("Cast", [product], to=TensorProto.FLOAT)
        self.reshape(logits, [-1, self.config["vocab_size"]], output="logits")
        return helper.make_graph(
            self.nodes, "main_graph", self.inputs(), self.outputs(), initializer=list(self.stored.values())
        )

    def layer(self, name: str, index: int, stream: str) -> str:
        normed = self.norm(f"{name}input_layernorm", stream)
        joined = self.projections(f"{name}self_attn.", normed)
        width = (self.heads + 2 * self.keys) * self.head_dim
        attended = self.attention(f"{name}self_attn.", index, self.reshape(joined, [-1, width]))
        if self.shape is None:
            own = [self.tokens, self.integers([1]), self.integers([self.heads * self.head_dim])]
            self.shape = self.node("Concat", own, axis=0)
        flat = self.node("Reshape", [attended, self.shape], allowzero=1)
        middle = self.node(
            "Add", [stream, self.linear(f"{name}self_attn.o_proj", self.rounded(name, "o", flat))]
        )
        normed = self.norm(f"{name}post_attention_layernorm", middle)
        inputs = self.rounded(name, "gate", normed)
        gate = self.linear(f"{name}mlp.gate_proj", inputs)
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate])])
        product = self.node("Mul", [silu, self.linear(f"{name}mlp.up_proj", inputs)])
        down = self.linear(f"{name}mlp.down_proj", self.rounded(name, "down", product))
        return self.node("Add", [middle, down])

    def norm(self, name: str, stream: str) -> str:
        wide = self.node("Cast", [stream], to=TensorProto.FLOAT)
        squared = self.node("Pow", [wide, self.number(2.0)])
        mean = self.node("ReduceMean", [squared, self.integers([-1])], keepdims=1, noop_with_empty_axes=0)
        root = self.node("Sqrt", [self.node("Add", [mean, self.number(self.config["rms_norm_eps"])])])
        scaled = self.node("Mul", [wide, self.node("Reciprocal", [root])])
        weight = self.tensor(self.weights[f"{name}.weight"].to(torch.float16))
        return self.node("Mul", [weight, self.node("Cast", [scaled], to=TensorProto.FLOAT16)])

    def projections(self, name: str, states: str) -> str:
        names = [f"{name}{part}_proj" for part in "qkv"]
        if self.fp8:
            inputs = self.rounded(name.removesuffix("self_attn."), "q", states)
            return self.node("Concat", [self.linear(own, inputs) for own in names], axis=-1)
        matrix = torch.cat([self.weights[f"{own}.weight"] for own in names]).to(torch.float16)
        product = self.node("MatMul", [states, self.tensor(matrix.T)])
        if f"{names[0]}.bias" not in self.weights:
            return product
        bias = torch.cat([self.weights[f"{own}.bias"] for own in names]).to(torch.float16)
        return self.node("Add", [product, self.tensor(bias)])

    def rounded(self, layer: str, part: str, states: str) -> str:
        if not self.fp8:
            return states
        module = f"{layer}{'self_attn' if part in 'qo' else 'mlp'}.{part}_proj"
        scale = self.tensor(self.weights[f"{module}.input_scale"].to(torch.float16).reshape(()))
        quantised = self.node("QuantizeLinear", [states, scale], output_dtype=TensorProto.FLOAT8E4M3FN)
        return self.node("DequantizeLinear", [quantised, scale])

    def linear(self, name: str, states: str) -> str:
        weight = self.weights[f"{name}.weight"]
        if not self.fp8:
            return self.node("MatMul", [states, self.tensor(weight.to(torch.float16).T)])
        scale = self.tensor(self.weights[f"{name}.weight_scale"].to(torch.float16).reshape(()))
        matrix = self.node("DequantizeLinear", [self.tensor(weight), scale])
        product = self.node("MatMul", [states, self.node("Transpose", [matrix], perm=[1, 0])])
        if f"{name}.bias" not in self.weights:
            return product
        return self.node("Add", [product, self.tensor(self.weights[f"{name}.bias"].to(torch.float16))])

    def attention(self, name: str, index: int, joined: str) -> str:
        norms = [f"{name}{part}_norm.weight" for part in "qk"]
        has_norms = norms[0] in self.weights
        gammas = [self.tensor(self.weights[own].to(torch.float16)) for own in norms] if has_norms else []
        scales = [1.0, 1.0, 1.0]
        if self.fp8_cache:
            scales = [1.0, *(float(self.weights[f"{name}{part}_proj.{part}_scale"]) for part in "kv")]
        outputs = [f"attended_{index}", f"present_key_values_{index}"]
        inputs = [joined, f"past_key_values_{index}", "query_lengths", "rope_rotary_cos_sin", "past_lengths"]
        inputs += ["kv_page_table", *gammas, "query_start_offsets", "attention_sequence_lengths"]
        inputs += ["execution_phase_marker", "context_sequence_count_carrier"]
        attributes = {
            "num_q_heads": self.heads,
            "num_kv_heads": self.keys,
            "head_size": self.head_dim,
            "enable_tree_attention": 0,
            "enable_fp8_kv_cache": int(self.fp8_cache),
            "enable_context_mask_selector": 0,
            "enable_vision_block_attention": 0,
            "sliding_window_size": -1,
            "qkv_scales": scales,
            "attention_scale": self.head_dim**-0.5,
            "skip_softmax_scale_factor": 0.0,
            "rms_norm_eps": self.config["rms_norm_eps"] if has_norms else 1e-6,
            "enable_qk_norm": int(has_norms),
            "qk_norm_post_rope": 0,
            "enable_kv_shared": 0,
            "enable_attention_sink": 0,
            "enable_contiguous_query_swa": 0,
            "plugin_version": "1",
            "_outputs": 2,
        }
        self.nodes.append(
            helper.make_node("AttentionPlugin", inputs, outputs, domain="trt_edgellm", **attributes)
        )
        return outputs[0]

    def node(
        self, operator: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any
    ) -> str:
        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def reshape(self, value: str, shape: list[int], *, output: str | None = None) -> str:
        return self.node("Reshape", [value, self.integers(shape)], output=output, allowzero=1)

    def integers(self, values: list[int]) -> str:
        return self._store(TensorProto.INT64, [len(values)], np.array(values, np.int64).tobytes())

    def number(self, value: float) -> str:
        return self._store(TensorProto.FLOAT, [], np.array(value, np.float32).tobytes())

    def tensor(self, values: torch.Tensor) -> str:
        data = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return self._store(_TYPES[values.dtype], list(values.shape), data)

    def _store(self, kind: int, shape: list[int], data: bytes) -> str:
        """Equal tensors are stored once, as the real exporter does."""
        key = bytes([kind]) + str(shape).encode() + data
        if key not in self.stored:
            name = f"stored_{len(self.stored)}"
            self.stored[key] = TensorProto(name=name, data_type=kind, dims=shape, raw_data=data)
        return str(self.stored[key].name)

    def inputs(self) -> list[Any]:
        cache = TensorProto.FLOAT8E4M3FN if self.fp8_cache else TensorProto.FLOAT16
        info = helper.make_tensor_value_info
        count = self.config["num_hidden_layers"]
        pages = [2, "num_pages", _PAGE_TOKENS, self.keys, self.head_dim]
        return [
            info("inputs_embeds", TensorProto.FLOAT16, ["physical_tokens", self.hidden]),
            *(info(f"past_key_values_{index}", cache, pages) for index in range(count)),
            info("rope_rotary_cos_sin", TensorProto.FLOAT, ["physical_tokens", self.head_dim]),
            *(info(name, TensorProto.INT32, shape) for name, shape in _SEQUENCE_INPUTS.items()),
            info("logits_indices", TensorProto.INT64, ["num_sequences"]),
        ]

    def outputs(self) -> list[Any]:
        cache = TensorProto.FLOAT8E4M3FN if self.fp8_cache else TensorProto.FLOAT16
        info = helper.make_tensor_value_info
        pages = [2, "num_pages", _PAGE_TOKENS, self.keys, self.head_dim]
        count = self.config["num_hidden_layers"]
        logits = info("logits", TensorProto.FLOAT, ["num_sequences", self.config["vocab_size"]])
        return [logits, *(info(f"present_key_values_{index}", cache, pages) for index in range(count))]
