"""Exports through the stage, and what `verify` finds in damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from compressor.core.errors import DependencyError, VerificationError
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Calibration, TensorRTLLM
from compressor.runs.stage import execute
from exporters.verification.verify import verify_directory
from tests.corruptions.faults import chosen
from tests.corruptions.formats import change_tensors
from tests.tiny_models import make_tokenizer, save_checkpoint
from tests.unit.exporters.conftest import Exports, artifact_of, context, export, record_of, refuses, verify
from tests.unit.exporters.tensorrt_llm.conftest import LLAMA3, make_llama31

NAMES: tuple[str, ...] = ("tensorrt-llm", "tensorrt-llm-fp16", "tensorrt-llm-fp8")
Tensors = dict[str, torch.Tensor]
LAYER = "transformer.layers.1."


@pytest.mark.parametrize("tied", [True, False])
def test_the_bf16_checkpoint_has_the_students_logits(exports: Exports, tied: bool) -> None:
    record = record_of(exports.make("tensorrt-llm", tied=tied))
    assert (record["status"], record["logits"]["all"]["max_abs"]) == ("passed", 0)
    assert record["tolerance"]["max_relative"] == 0
    assert record["checks"]["num_positions_equal_to_rounded_student"] >= 2000


def test_the_fp16_checkpoint_of_a_bf16_student_is_close_and_exactly_cast(exports: Exports) -> None:
    record = record_of(exports.make("tensorrt-llm-fp16"))
    assert record["status"] == "passed"
    assert record["checks"]["num_positions_equal_to_rounded_student"] >= 2000


def test_the_fp8_checkpoint_follows_calibration(exports: Exports) -> None:
    record = record_of(exports.make("tensorrt-llm-fp8"))
    assert (record["status"], record["tolerance"]) == ("reported", None)
    assert record["checks"]["scales_follow_recorded_amax"] is True
    assert record["checks"]["num_equal_fp8_weights"] == 21
    assert 0 < record["logits"]["text"]["kl"] < 1.0


def test_the_tokenizer_travels_and_is_checked(exports: Exports) -> None:
    made = exports.make("tensorrt-llm")
    assert record_of(made)["checks"]["tokenizer"].startswith("equal")
    ids = Tokenizer.from_file(str(made / "tokenizer.json")).encode("One two\n 3").ids
    assert ids == make_tokenizer()("One two\n 3", add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_passes_verify_by_itself(exports: Exports, name: str) -> None:
    report = verify_directory(exports.make(name))
    assert (report.kind, report.checked[0].found["format"]) == ("export", name)
    assert report.checked[0].found["mapping"] == {"world_size": 1, "tp_size": 1, "pp_size": 1}


def test_ranks_come_from_the_recipe(exports: Exports, tmp_path: Path) -> None:
    settings, source = TensorRTLLM(tp_size=2, pp_size=2), exports.quantised(tied=True)
    made = export("tensorrt-llm-fp8", source, tmp_path / "made", tensorrt_llm=settings)
    assert len(list((made.path / "checkpoint").glob("rank*.safetensors"))) == 4
    assert made.details["checks"]["mapping"]["world_size"] == 4


@chosen
def swapped(tensors: Tensors, *names: str) -> None:
    first, second = (LAYER + name for name in names)
    tensors[first], tensors[second] = tensors[second], tensors[first]


def permute_q_and_k(tensors: Tensors) -> None:
    name = LAYER + "attention.qkv.weight"
    stored = tensors[name].view(torch.uint8 if tensors[name].dtype == torch.float8_e4m3fn else torch.int16)
    query, key, value = stored.split([64, 32, 32])
    order = [1, 0, 2, 3]
    moved = torch.cat([query.unflatten(0, (4, 16))[order].flatten(0, 1), key.roll(16, 0), value])
    tensors[name] = moved.view(tensors[name].dtype)


@chosen
def without(tensors: Tensors, name: str) -> None:
    del tensors[LAYER + name]


@chosen
def with_value(tensors: Tensors, name: str, value: float) -> None:
    tensors[LAYER + name] = torch.full_like(tensors[LAYER + name], value)


@chosen
def every_scale_one(tensors: Tensors, suffix: str) -> None:
    tensors |= {name: torch.ones(1) for name in tensors if name.endswith(suffix)}


def left_over(tensors: Tensors) -> None:
    tensors[LAYER + "attention.dense.bias"] = torch.zeros(64)


DAMAGE: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "gate and up": (swapped("mlp.fc.weight", "mlp.gate.weight"), "not the student's"),
    "q and k": (permute_q_and_k, "not the student's"),
    "norms": (swapped("input_layernorm.weight", "post_layernorm.weight"), "not the student's"),
    "dropped tensor": (without("mlp.proj.weight"), "lacks a tensor"),
    "left over": (left_over, "nothing reads"),
}
FP8_DAMAGE = {
    "dropped weight scale": (without("mlp.fc.weights_scaling_factor"), "lacks a tensor"),
    "dropped input scale": (without("attention.qkv.activation_scaling_factor"), "lacks a tensor"),
    "zero scale": (with_value("mlp.fc.weights_scaling_factor", 0.0), "unusable"),
    "nan scale": (with_value("attention.dense.activation_scaling_factor", float("nan")), "unusable"),
    "other weight scale": (with_value("attention.dense.weights_scaling_factor", 0.01), "calibration"),
    "other input scale": (with_value("attention.dense.activation_scaling_factor", 0.01), "calibration"),
    "weight scales all one": (every_scale_one("weights_scaling_factor"), "every weight scale is 1.0"),
    "input scales all one": (every_scale_one("activation_scaling_factor"), "every activation scale is 1.0"),
}


@pytest.fixture(scope="module")
def with_cache(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP8 export with an FP8 cache; not to be changed."""
    source = exports.quantised(tied=True, fp8_kv_cache=True)
    return export("tensorrt-llm-fp8", source, tmp_path_factory.mktemp("exports") / "cache").path


CACHE_DAMAGE = {
    "dropped": (without("attention.kv_cache_scaling_factor"), "lacks a tensor"),
    "zero": (with_value("attention.kv_cache_scaling_factor", 0.0), "unusable"),
    "inf": (with_value("attention.k_cache_scaling_factor", float("inf")), "unusable"),
    "other": (with_value("attention.kv_cache_scaling_factor", 1.25), "does not follow from calibration"),
    "other values": (with_value("attention.v_cache_scaling_factor", 0.5), "does not follow"),
}


ALL_DAMAGE = {
    **{("tensorrt-llm", False, how): row for how, row in DAMAGE.items()},
    **{("tensorrt-llm-fp8", False, how): row for how, row in {**DAMAGE, **FP8_DAMAGE}.items()},
    **{("tensorrt-llm-fp8", True, how): row for how, row in CACHE_DAMAGE.items()},
}


@pytest.mark.parametrize(("name", "cached", "how"), ALL_DAMAGE)
def test_damage_is_caught(
    exports: Exports, with_cache: Path, tmp_path: Path, name: str, cached: bool, how: str
) -> None:
    made = Path(shutil.copytree(with_cache if cached else exports.make(name), tmp_path / "made"))
    student = exports.quantised(tied=True, fp8_kv_cache=cached).path
    verify(name, made, student)
    damage, message = ALL_DAMAGE[name, cached, how]
    change_tensors(made / "checkpoint" / "rank0.safetensors", damage)
    refuses(name, made, student, match=message)


def test_cache_scales_of_one_are_the_formats_minimum(with_cache: Path) -> None:
    stored = load_file(with_cache / "checkpoint" / "rank0.safetensors")
    scales = [stored[name].item() for name in stored if name.endswith("cache_scaling_factor")]
    assert scales == [1.0] * 9
    assert verify_directory(with_cache).checked[0].found["fp8"] is True


def test_a_checkpoint_in_another_precision_is_caught(exports: Exports, with_cache: Path) -> None:
    plain, cached = exports.quantised(tied=True).path, exports.quantised(tied=True, fp8_kv_cache=True).path
    wrong: list[tuple[str, Path, Path, str]] = [
        ("tensorrt-llm-fp16", exports.make("tensorrt-llm"), plain, "dtype"),
        ("tensorrt-llm-fp8", exports.make("tensorrt-llm"), plain, "fp8"),
        ("tensorrt-llm", exports.make("tensorrt-llm-fp8"), plain, "fp8"),
        ("tensorrt-llm-fp8", exports.make("tensorrt-llm-fp8"), cached, "fp8_kv_cache"),
        ("tensorrt-llm-fp8", with_cache, plain, "fp8_kv_cache"),
    ]
    for name, made, student, field in wrong:
        with pytest.raises(VerificationError, match="another precision") as caught:
            verify(name, made, student)
        assert str(caught.value.where) == f"{name}: {field}"


@pytest.fixture(scope="module")
def llama31(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student of Llama-3.1's rope, quantised, in both formats; not to be changed."""
    root = tmp_path_factory.mktemp("llama31")
    student = artifact_of(save_checkpoint(root / "student", make_llama31()))
    config = QuantizeStageConfig(calibration=Calibration(data=str(exports.text), size=4, seq_len=64))
    source = execute(QUANTIZE, config, student, root / "quantised", context()).artifact
    names = ("huggingface-fp8", "tensorrt-llm-fp8")
    return {"quantised": source.path, **{name: export(name, source, root / name).path for name in names}}


BASE = 500_000.0
KEPT: dict[str, tuple[str, dict[str, object]]] = {
    "tensorrt-llm-fp8": ("checkpoint/config.json", {"rotary_base": BASE, "rotary_scaling": LLAMA3}),
    "huggingface-fp8": (
        "config.json",
        {"rope_theta": BASE, "rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": BASE, **LLAMA3}},
    ),
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tensorrt-llm-fp8", {"rotary_scaling": None}),
        ("tensorrt-llm-fp8", {"rotary_base": 10_000.0}),
        ("huggingface-fp8", {"rope_scaling": None}),
        ("huggingface-fp8", {"rope_theta": 10_000.0}),
        ("huggingface-fp8", {"rope_parameters": {"rope_theta": BASE, "rope_type": "default"}}),
    ],
)
def test_rope_of_llama31_is_kept_and_its_loss_is_caught(
    llama31: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    file, kept = KEPT[name]
    copy = Path(shutil.copytree(llama31[name], tmp_path / "made"))
    config = json.loads((copy / file).read_text())
    assert {field: config[field] for field in kept} == kept
    (copy / file).write_text(json.dumps({**config, **changes}))
    refuses(name, copy, llama31["quantised"], match="config differs")


def test_without_a_builder_the_script_is_left_and_a_required_engine_is_an_error(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = exports.source("tensorrt-llm")
    made = export("tensorrt-llm", source, tmp_path / "made")
    engine = made.details["engine"]
    assert (engine["built"], engine["reason"]) == (False, "no trtllm-build on PATH")
    assert engine["commands"]["engine"].startswith(
        "trtllm-build --checkpoint_dir checkpoint --output_dir engine "
    )
    script = (made.path / engine["script"]).read_text()
    assert engine["commands"]["engine"] in script
    assert "nvcr.io/nvidia/tensorrt-llm/release:1.2.1" in script
    (made.path / "engine").mkdir()
    (made.path / "engine" / "rank0.engine").write_bytes(b"built later")
    assert verify_directory(made.path).checked[0].status == "ok"
    required = TensorRTLLM(require_engine=True)
    with pytest.raises(DependencyError, match="no trtllm-build"):
        export("tensorrt-llm", source, tmp_path / "required", tensorrt_llm=required)
