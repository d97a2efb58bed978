"""The stand-in's graphs are those that the real converter wrote, and compute what transformers computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import load
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.models.checkpoint import read_config
from exporters.edge_llm.compare import compare
from exporters.edge_llm.reader import EdgeReader
from tests.corruptions.edge_faults import graph, without_rounding
from tests.oracles.record_edge_llm import CASES, GOLDEN, config_of, structure
from tests.unit.exporters.edge_llm.conftest import Exported

TOKENS = [5, 17, 255, 3, 42, 199, 7]
HEAD_DIM = 64


@pytest.mark.parametrize("name", CASES)
def test_the_stand_in_writes_what_the_real_converter_wrote(exports: dict[str, Exported], name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    found = json.loads(
        json.dumps({**structure(exports[name].graph), "config": config_of(exports[name].graph)})
    )
    for part in ("opsets", "outputs", "config"):
        assert found[part] == golden[part]
    for number, (own, recorded) in enumerate(zip(found["nodes"], golden["nodes"], strict=True)):
        assert own == recorded, number


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_found_and_equal(exports: dict[str, Exported], name: str) -> None:
    made, case = exports[name], CASES[name]
    reader = EdgeReader(made.directory)
    assert reader.check_tensors() == len(reader.weights)
    found = compare(reader, made.student)
    layers = 2
    assert found.num_fp8_weights == (7 * layers if case.fp8 else 0)
    assert found.num_tensors + found.num_fp8_weights == len(reader.weights)
    assert found.num_scales == (2 * 7 * layers if case.fp8 else 0) + (2 * layers if case.cache else 0)


class AttentionPlugin(OpRun):
    """Causal attention of one sequence with an empty cache, after the plugin's documentation, in float64."""

    op_domain = "trt_edgellm"

    def _run(self, joined: Any, cache: Any, *others: Any, **attributes: Any) -> tuple[Any, Any]:
        q_heads, kv_heads, size = (attributes[name] for name in ("num_q_heads", "num_kv_heads", "head_size"))
        count = joined.shape[0]
        states = joined.astype(np.float64).reshape(count, q_heads + 2 * kv_heads, size)
        query, key, value = np.split(states, [q_heads, q_heads + kv_heads], axis=1)
        if attributes["enable_qk_norm"]:
            query, key = (
                _normed(heads, gamma, attributes["rms_norm_eps"])
                for heads, gamma in zip((query, key), others[4:6], strict=True)
            )
        query, key = (_turned(heads, others[1]) for heads in (query, key))
        if attributes["enable_fp8_kv_cache"]:
            _, key_scale, value_scale = attributes["qkv_scales"]
            key, value = _rounded(key, key_scale), _rounded(value, value_scale)
        key, value = (np.repeat(heads, q_heads // kv_heads, axis=1) for heads in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) * attributes["attention_scale"]
        scores[:, np.triu_indices(count, 1)[0], np.triu_indices(count, 1)[1]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), value)
        return mixed.astype(np.float16)[:, None], cache


def _normed(heads: Any, gamma: Any, epsilon: float) -> Any:
    return heads / np.sqrt((heads**2).mean(-1, keepdims=True) + epsilon) * gamma.astype(np.float64)


def _turned(heads: Any, cos_sin: Any) -> Any:
    cos, sin = (half[:, None].astype(np.float64) for half in np.split(cos_sin, 2, axis=-1))
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _rounded(heads: Any, scale: float) -> Any:
    stored = (torch.from_numpy(heads / scale)).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    return stored.double().numpy() * scale


def execute(made: Exported) -> torch.Tensor:
    """The graph's logits at every position, by ONNX's reference implementation of its operators."""
    count, config = len(TOKENS), read_config(made.student)
    embedding = load_file(made.graph / "embedding.safetensors")["embedding"]
    frequencies = config["rope_parameters"]["rope_theta"] ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = np.arange(count)[:, None] * frequencies
    lengths = np.array([count], np.int32)
    feeds: dict[str, Any] = {
        "inputs_embeds": embedding[TOKENS].numpy(),
        "rope_rotary_cos_sin": np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32),
        "query_lengths": lengths,
        "attention_sequence_lengths": lengths,
        "past_lengths": np.array([0], np.int32),
        "query_start_offsets": np.array([0, count], np.int32),
        "execution_phase_marker": np.array([0], np.int32),
        "context_sequence_count_carrier": np.array([1], np.int32),
        "kv_page_table": np.zeros((1, 2, 1), np.int32),
        "logits_indices": np.arange(count),
    }
    caches = {f"past_key_values_{index}": np.zeros((2, 1, 1, 1, 1), np.float16) for index in range(2)}
    session = ReferenceEvaluator(load(made.graph / "model.onnx"), new_ops=[AttentionPlugin])
    return torch.from_numpy(session.run(["logits"], {**feeds, **caches})[0])


def quantise_(model: Any, amax: dict[str, torch.Tensor], *, rounds_inputs: bool) -> None:
    """Round the weights of linear layers, and their inputs in every forward pass, as FP8 kernels do."""
    for name, module in model.named_modules():
        if f"{name}.weight_amax" not in amax:
            continue
        scale = amax[f"{name}.weight_amax"] / 448
        numbers = (module.weight.detach() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        module.weight.data = numbers.float() * scale.half().float()  # the graph's scales are float16
        inputs = (amax[f"{name}.input_amax"] / 448).half().item()
        if not rounds_inputs:
            continue
        module.register_forward_pre_hook(
            lambda _module, args, scale=inputs: (
                torch.from_numpy(_rounded(args[0].double().numpy(), scale)).float(),
            )
        )


def expected_logits(made: Exported, *, fp8: bool, rounds_inputs: bool) -> torch.Tensor:
    """Those of plain transformers, its layers rounded by hand."""
    model = AutoModelForCausalLM.from_pretrained(made.student, dtype=torch.float32)
    if fp8:
        quantise_(model, load_file(made.student / "amax.safetensors"), rounds_inputs=rounds_inputs)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.cache])
def test_a_graph_that_passes_computes_what_transformers_computes(
    exports: dict[str, Exported], tmp_path: Path, name: str
) -> None:
    made, is_fp8 = exports[name], CASES[name].fp8
    if is_fp8:
        # Noise of float16's size moves an input to the next E4M3 number here and there, which moves these
        # logits by about 5 %; without the inputs' rounding the agreement is that of float16.
        assert distance(execute(made), expected_logits(made, fp8=True, rounds_inputs=True)) < 0.1
        made = Exported(student=made.student, directory=shutil.copytree(made.directory, tmp_path / "export"))
        graph(_drop_every_rounding)(made.directory)
    assert distance(execute(made), expected_logits(made, fp8=is_fp8, rounds_inputs=False)) < 0.005


def _drop_every_rounding(found: Any) -> None:
    while any(node.op_type == "QuantizeLinear" for node in found.node):
        without_rounding(found)
