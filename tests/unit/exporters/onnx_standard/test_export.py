"""Exports of a tiny student to standard ONNX: what they hold, what they compute, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.core.errors import UsageError, VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import TWO_OF_FOUR
from compressor.models.sparse.record import SparsityRecord
from compressor.runs.artifact import record_files
from exporters.onnx.runtime import NotExecutableError
from exporters.onnx_standard import content, exporter
from exporters.registry import exporter_of, format_at
from tests.corruptions.formats import change_graph, initialiser, set_array
from tests.corruptions.standard_faults import drop_pair, flip, other_scale, scaled, third_nonzero
from tests.tiny_models import edit_tensors, make_model, save_checkpoint
from tests.unit.exporters.conftest import (
    OPTIONS,
    Exports,
    artifact_of,
    export,
    record_of,
    refuses,
    verify,
)
from tests.unit.exporters.onnx_standard.graphs import open_graph, plain_logits, random_ids

FP16, BF16, FP8 = "onnx-standard", "onnx-standard-bf16", "onnx-standard-fp8"
GATE = "model.layers.0.mlp.gate_proj"


def stored(made: Path) -> dict[str, Any]:
    graph = onnx.load(made / "model.onnx").graph
    return {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}


@pytest.mark.parametrize("tied", [True, False])
def test_float16_is_executed_and_agrees(exports: Exports, tied: bool) -> None:
    record = record_of(exports.make(FP16, tied=tied))
    assert record["status"] == "passed"
    assert record["logits"]["all"]["kl"] < 1e-4
    assert record["logits"]["all"]["top1_agreement"] >= 0.99
    assert record["checks"]["in_float32"]["kl"] < 1e-6
    assert record["logits"]["all"]["num_positions"] >= 2000
    checks = record["checks"]
    assert checks["num_equal_tensors"] == 29 + (not tied)
    assert checks["linear_layers"]["num"] == 21
    assert checks["linear_layers"]["max_relative"] <= 1e-3
    assert max(checks[way]["kl"] for way in ("in_steps", "in_a_batch")) < 1e-4


def test_bfloat16_is_executed_with_wider_numbers(exports: Exports) -> None:
    record = record_of(exports.make(BF16))
    assert record["status"] == "passed"
    assert record["logits"]["all"]["max_relative"] < 1e-5
    assert "widened" in record["notes"][0]
    made = exports.make(BF16)
    graph = onnx.load(made / "model.onnx", load_external_data=False).graph
    weight = initialiser(graph, f"{GATE}.weight")
    assert weight.data_type == onnx.TensorProto.BFLOAT16


def test_fp8_weights_are_the_checkpoints_bytes_and_scales_its_numbers(exports: Exports) -> None:
    found = stored(exports.make(FP8))
    unified = load_file(exports.quantised(tied=True).path / "huggingface-fp8" / "model.safetensors")
    linears = dims_of_config(read_config(exports.student(tied=True))).linear_names()
    for name in linears:
        codes = found[f"{name}.weight"]
        assert codes.tobytes() == unified[f"{name}.weight"].view(torch.uint8).numpy().tobytes()
        for kind in ("weight_scale", "input_scale"):
            assert found[f"{name}.{kind}"].dtype == np.float32
            assert found[f"{name}.{kind}"] == unified[f"{name}.{kind}"].item()


def test_fp8_computes_what_rounded_activations_give(exports: Exports) -> None:
    """Against transformers with hooks of this test: the nearest E4M3 number by search, in float64."""
    made, student = exports.make(FP8), exports.student(tied=True)
    unified = load_file(exports.quantised(tied=True).path / "huggingface-fp8" / "model.safetensors")
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    numbers = numbers[numbers.isfinite()].unique()

    def nearest(values: torch.Tensor, scale: float) -> torch.Tensor:
        codes = values.double() / scale
        above = torch.searchsorted(numbers, codes).clamp(1, len(numbers) - 1)
        low, high = codes - numbers[above - 1], numbers[above] - codes
        return numbers[torch.where(high < low, above, above - 1)] * scale

    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32, local_files_only=True)
    for name in dims_of_config(read_config(student)).linear_names():
        linear = model.get_submodule(name)
        input_scale = unified[f"{name}.input_scale"].item()
        linear.weight.data = unified[f"{name}.weight"].float() * unified[f"{name}.weight_scale"]
        linear.register_forward_pre_hook(
            lambda _, inputs, scale=input_scale: (nearest(inputs[0], scale).float(),)
        )
    token_ids = random_ids(200)
    found = open_graph(made, student, widened=True).logits(token_ids)
    expected = plain_logits(model, token_ids)
    difference = (found - expected).abs().amax(-1) / expected.abs().max()
    # A value that float32 puts on the other side of a border makes a difference from there on.
    assert difference.median() < 1e-5
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.99


def test_fp8_is_held_to_the_reader_and_its_perplexity_is_recorded(exports: Exports) -> None:
    record = record_of(exports.make(FP8))
    assert record["status"] == "reported"
    assert record["checks"]["in_float32"]["kl"] <= 1e-3
    assert record["checks"]["in_float32"]["top1_agreement"] >= 0.99
    reader = record["checks"]["against_fp8_reader"]
    assert reader["in_float32"]["kl"] <= 1e-3
    assert reader["in_float32"]["top1_agreement"] >= 0.99
    assert reader["in_16_bits"]["kl"] < record["logits"]["all"]["kl"]
    perplexities = record["checks"]["perplexity_of_prompts"]
    assert set(perplexities) == {"graph", "student", "fp8_reader"}
    assert perplexities["graph"] == pytest.approx(perplexities["fp8_reader"], rel=0.05)
    assert record["checks"]["num_equal_fp8_weights"] == record["checks"]["linear_layers"]["num"] == 21


def test_a_plain_session_runs_what_was_written(exports: Exports) -> None:
    """As a user opens it: no option set, nothing of ours, one step behind an empty cache."""
    for name in (FP16, FP8):
        made = exports.make(name)
        session = onnxruntime.InferenceSession(made / "model.onnx", providers=["CPUExecutionProvider"])
        feed: dict[str, Any] = {
            "input_ids": np.array([[3, 5, 8]]),
            "attention_mask": np.ones((1, 3), np.int64),
            "position_ids": np.arange(3)[None],
        }
        feed |= {
            entry.name: np.zeros((1, 2, 0, 16), np.float16)
            for entry in session.get_inputs()
            if entry.name.startswith("past_key_values.")
        }
        outputs = dict(
            zip([entry.name for entry in session.get_outputs()], session.run(None, feed), strict=True)
        )
        assert outputs["logits"].shape == (1, 3, 331)
        assert outputs["logits"].dtype == np.float32
        assert outputs["present.2.value"].shape == (1, 2, 3, 16)
        assert format_at(made).option == "onnx-standard"  # type: ignore[union-attr]


def test_an_fp8_cache_is_rounded_on_its_way(exports: Exports, tmp_path: Path) -> None:
    source = exports.quantised(tied=True, fp8_kv_cache=True)
    if Version(version("nvidia-modelopt")) < Version("0.38"):  # clamps these scales to 1 in the checkpoint
        with pytest.raises(VerificationError, match=r"k_proj\.k_scale"):
            export(FP8, source, tmp_path / "made")
        return
    made = export(FP8, source, tmp_path / "made").path
    record = record_of(made)
    assert record["checks"]["num_equal_scales"] == 2 * 21 + 2 * 3
    assert record["checks"]["in_float32"]["kl"] <= 1e-3
    change_graph(made, scaled("layers.1.self_attn.v_proj.v_scale", lambda value: value * 2))
    refuses(FP8, made, source.path, match=r"v_proj\.v_scale")


@pytest.mark.parametrize("family", ["nemotron", "phi3", "qwen2"])
def test_other_families_are_written_and_verified(exports: Exports, tmp_path: Path, family: str) -> None:
    """Layer norms, joined projections, biases and windows through the stage itself."""
    overrides = {"phi3": {"sliding_window": 40}}.get(family, {})
    student = save_checkpoint(tmp_path / "student", make_model(family, **overrides).to(torch.bfloat16))
    record = record_of(export(FP16, artifact_of(student), tmp_path / "made").path)
    assert record["status"] == "passed"
    assert record["checks"]["linear_layers"]["max_relative"] <= 1e-3


FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "a changed weight": (flip, r"gate_proj\.weight"),
    "a wrong scale": (scaled(f"{GATE}.weight_scale", lambda value: value * 2), r"gate_proj\.weight_scale"),
    "a scale that differs in its last bit": (
        scaled(f"{GATE}.input_scale", lambda value: np.nextafter(value, np.float32(1))),
        r"gate_proj\.input_scale",
    ),
    "a dropped pair": (drop_pair, r"gate_proj/Cast"),
    "another layer's scale": (other_scale, r"gate_proj/QuantizeLinear"),
    "a third non-zero": (third_nonzero, r"gate_proj\.weight"),
    "an epsilon": (scaled("norm.epsilon", lambda value: value * 10), r"norm\.epsilon"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named(exports: Exports, tmp_path: Path, fault: str) -> None:
    made, source = exports.copy(FP8, tmp_path / "made"), exports.source(FP8)
    change, named = FAULTS[fault]
    if fault == "a third non-zero":  # a dense weight has no zero in that row; make one
        change = scaled(f"{GATE}.weight", _with_a_small_value)
    change_graph(made, change)
    refuses(FP8, made, source.path, match=named)


def _with_a_small_value(values: Any) -> Any:
    values.view(np.uint8)[3, 5] ^= 0x20
    return values


def test_a_dropped_pair_shows_in_the_layer_and_a_wrong_layer_in_the_logits(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the comparison of nodes says: execution finds it too."""
    monkeypatch.setattr(content, "_compare_nodes", lambda *_, **__: 0)
    made, source = exports.copy(FP8, tmp_path / "made"), exports.source(FP8)
    change_graph(made, drop_pair)
    refuses(FP8, made, source.path, match=r"linear layer[\s\S]*layers\.0\.mlp\.gate_proj")
    made = exports.copy(FP16, tmp_path / "other")
    change_graph(made, scaled("attention.scale", lambda value: value / 2))
    refuses(FP16, made, exports.student(tied=True), match="than the student it holds")


def test_sparse_weights_are_checked_as_the_graph_stores_them(exports: Exports, tmp_path: Path) -> None:
    student, name = tmp_path / "student", f"{GATE}.weight"
    save_checkpoint(student, make_model().to(torch.bfloat16))
    edit_tensors(student, lambda tensors: tensors[name].mul_(keep_mask(tensors[name].float().abs())))
    made = tmp_path / "made"
    made.mkdir()
    exporter_of(FP16).write(student, made, OPTIONS)
    sparsity = SparsityRecord(pattern=TWO_OF_FOUR, model_type="llama", shapes={name: (192, 64)})
    assert exporter_of(FP16).check_sparsity(made, sparsity) == 1
    change_graph(made, third_nonzero)
    with pytest.raises(VerificationError, match=r"gate_proj\.weight"):
        exporter_of(FP16).check_sparsity(made, sparsity)


def test_exports_are_byte_identical_from_run_to_run(exports: Exports) -> None:
    first, second = exports.make(FP8), exports.make(FP8, copy="-again")
    assert record_files(first) == record_files(second)
    assert str(exports.root).encode() not in (first / "model.onnx").read_bytes()


def test_an_unquantised_student_and_an_overflow_are_refused(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not quantised"):
        exporter_of(FP8).write(exports.student(tied=True), tmp_path, OPTIONS)
    student = save_checkpoint(tmp_path / "student", make_model().to(torch.bfloat16))
    name = "model.layers.2.mlp.up_proj.weight"
    edit_tensors(student, lambda tensors: tensors[name].view(-1).__setitem__(0, 1e6))
    made = tmp_path / "made"
    made.mkdir()
    with pytest.raises(VerificationError, match=r"overflows[\s\S]*layers\.2\.mlp\.up_proj"):
        exporter_of(FP16).write(student, made, OPTIONS)


def test_a_graph_that_is_not_whole_or_not_standard_is_refused(exports: Exports, tmp_path: Path) -> None:
    check = exporter_of(FP16).check_structure
    assert check(exports.make(FP16))["num_tensors"]
    made = exports.copy(FP16, tmp_path / "cut")
    data = (made / "model.onnx.data").read_bytes()
    (made / "model.onnx.data").write_bytes(data[:-100])
    with pytest.raises(VerificationError, match="truncated"):
        check(made)
    (made / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(VerificationError, match="corrupt"):
        check(made)
    (made / "model.onnx").unlink()
    with pytest.raises(VerificationError, match="missing"):
        check(made)

    made = exports.copy(FP16, tmp_path / "foreign")
    change_graph(made, lambda graph: setattr(graph.node[5], "domain", "com.microsoft"))
    with pytest.raises(VerificationError, match="standard domain"):
        check(made)
    made = exports.copy(FP16, tmp_path / "elsewhere")
    model = onnx.load(made / "model.onnx", load_external_data=False)
    for entry in model.graph.initializer:
        for pair in entry.external_data:
            if pair.key == "location":
                pair.value = "../elsewhere.data"
    (made / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="elsewhere"):
        check(made)


def test_a_runtime_without_kernels_is_an_error(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise NotExecutableError("no kernel")

    monkeypatch.setattr(exporter, "StandardGraph", refuse)
    with pytest.raises(VerificationError, match="cannot execute"):
        verify(FP16, exports.make(FP16), exports.student(tied=True))


def test_a_value_changed_by_one_step_is_caught(exports: Exports, tmp_path: Path) -> None:
    """A constant's array of another dtype, too."""
    made = exports.copy(FP16, tmp_path / "made")
    change_graph(
        made,
        lambda graph: initialiser(graph, "attention.scale").CopyFrom(
            numpy_helper.from_array(np.asarray(0.25, np.float64), "attention.scale")
        ),
    )
    refuses(FP16, made, exports.student(tied=True), match=r"attention\.scale")
    made = exports.copy(FP16, tmp_path / "other")
    change_graph(made, lambda graph: set_array(initialiser(graph, "mask.hidden"), np.asarray(-1e29)))
    refuses(FP16, made, exports.student(tied=True), match=r"mask\.hidden")
