"""Int4 graphs: every stored code and scale against the student's weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.load import load_model
from exporters.onnx.int4 import check_int4
from tests.corruptions.export_faults import graph, int4_faults
from tests.corruptions.faults import chosen
from tests.corruptions.formats import array_of, initialiser, set_array
from tests.tiny_models import VOCAB_SIZE
from tests.unit.exporters.conftest import Exports, record_of, refuses
from tests.unit.exporters.test_onnx import assert_equal_logits, graph_of


def widen_scale(found: Any) -> None:
    """Codes rounded again to a scale twice as wide: every weight within half a step, and half as fine."""
    base = "model.layers.2.mlp.up_proj.MatMul.weight"
    codes, scales = initialiser(found, f"{base}_Q4"), initialiser(found, f"{base}_scales")
    packed = array_of(codes)
    low, high = (np.rint((part.astype(int) - 8) / 2).astype(int) + 8 for part in (packed & 15, packed >> 4))
    set_array(codes, low | high << 4)
    set_array(scales, 2 * array_of(scales))


@chosen
def one_value(found: Any, name: str, place: int, change: Callable[[Any], Any]) -> None:
    entry = initialiser(found, name)
    values = array_of(entry)
    values.reshape(-1)[place] = change(values.reshape(-1)[place])
    set_array(entry, values)


PLANTED = {fault.name: fault.plant for fault in int4_faults()}
INT4_DAMAGE = {
    "layers": (PLANTED["layers permuted"], "half a step|not the student's"),
    "doubled scale": (PLANTED["scale doubled"], "half a step"),
    "wide scale": (graph(widen_scale), "half a step|too wide"),
    "one code": (
        graph(one_value("lm_head.MatMul.weight_Q4", 5, lambda code: code ^ 2)),
        r"half a step[\s\S]*lm_head",
    ),
    "one scale": (
        graph(one_value("layers.0.attn.o_proj.MatMul.weight_scales", 3, lambda _scale: 1.0)),
        r"half a step[\s\S]*o_proj|too wide",
    ),
    "norm": (
        graph(one_value("layers.1.input_layernorm.weight", 0, lambda value: 1.01 * value)),
        "not the student's",
    ),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", INT4_DAMAGE)
def test_damage_to_an_int4_graph_is_caught(exports: Exports, tmp_path: Path, how: str, tied: bool) -> None:
    made, student = exports.copy("onnx-int4", tmp_path / "made", tied=tied), exports.student(tied=tied)
    dims = dims_of_config(read_config(student))
    assert check_int4(made, student, dims) == 16
    plant, message = INT4_DAMAGE[how]
    plant(made)
    with pytest.raises(VerificationError, match=message):
        check_int4(made, student, dims)


@pytest.mark.parametrize("tied", [True, False])
def test_int4_weights_are_in_memory_one_matrix_at_a_time(exports: Exports, tied: bool) -> None:
    student, most, total = exports.student(tied=tied), 0, 0
    held: list[weakref.ref[torch.Tensor]] = []

    def keep(_name: str, weight: torch.Tensor) -> None:
        nonlocal most, total
        total += weight.numel()
        held.append(weakref.ref(weight))
        alive = {id(tensor): tensor.numel() for ref in held if (tensor := ref()) is not None}
        most = max(most, sum(alive.values()))

    check_int4(exports.make("onnx-int4", tied=tied), student, dims_of_config(read_config(student)), keep=keep)
    largest = VOCAB_SIZE * 64
    assert most == largest
    assert total > 4 * largest


def test_int4_layers_in_another_order_fall_below_the_floor(exports: Exports, tmp_path: Path) -> None:
    made = exports.copy("onnx-int4", tmp_path / "made")
    PLANTED["layers permuted"](made)
    refuses("onnx-int4", made, exports.student(tied=True), match="agrees with the student too little")


def test_int4_computes_what_the_student_with_its_weights_computes(exports: Exports) -> None:
    """Codes and scales multiplied out here, in float64, without the reader."""
    student, made = exports.student(tied=False), exports.make("onnx-int4", tied=False)
    entries = {entry.name: entry for entry in onnx.load(made / "model.onnx").graph.initializer}
    model = load_model(student, dtype="float32", device="cpu")
    for index, layer in enumerate(model.model.layers):
        for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            linear = layer.get_submodule(name)
            base = f"model.layers.{index}.{name.replace('self_attn', 'attn')}.MatMul.weight"
            linear.weight.data = multiplied_out(entries, base, *linear.weight.shape)
        qkv = multiplied_out(entries, f"model.layers.{index}.attn.qkv_proj.MatMul.weight", 128, 64)
        parts = zip(("q_proj", "k_proj", "v_proj"), qkv.split([64, 32, 32]), strict=True)
        for name, part in parts:
            layer.self_attn.get_submodule(name).weight.data = part.clone()
    model.lm_head.weight.data = multiplied_out(entries, "lm_head.MatMul.weight", VOCAB_SIZE, 64)
    ids = list(range(3, 90))
    assert_equal_logits(graph_of(made, student, exact_activations=True).logits(ids), model, ids)
    assert record_of(made)["checks"]["max_relative_to_student_carrying_them"] <= 1e-3


def multiplied_out(entries: dict[str, Any], base: str, rows: int, columns: int) -> torch.Tensor:
    packed = array_of(entries[f"{base}_Q4"]).reshape(rows, -1)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, 32).astype(np.float64) - 8
    scales = array_of(entries[f"{base}_scales"]).reshape(rows, -1, 1)
    return torch.from_numpy((codes * scales).reshape(rows, -1)[:, :columns]).float()
