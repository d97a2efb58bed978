"""Exports through the stage, and what `verify` finds in damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from compressor.choices.formats import FORMATS
from compressor.core.errors import DependencyError, UsageError, VerificationError
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Calibration, Export, TensorRTLLM
from compressor.runs.stage import execute
from exporters.export_stage import export_stage
from exporters.registry import exporter_of
from exporters.verification.record import VERIFICATION_FILE
from exporters.verification.verify import verify_directory
from tests.records import record_again
from tests.tiny_models import make_model, make_tokenizer, save_checkpoint
from tests.unit.exporters.conftest import OPTIONS, Exports, artifact_of, context

NAMES: tuple[str, ...] = ("tensorrt-llm", "tensorrt-llm-fp16", "tensorrt-llm-fp8")
Tensors = dict[str, torch.Tensor]
LAYER = "transformer.layers.1."


def record_of(made: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((made / VERIFICATION_FILE).read_text())
    return record


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
    settings = Export(tensorrt_llm=TensorRTLLM(tp_size=2, pp_size=2))
    source = exports.quantised(tied=True)
    made = execute(export_stage("tensorrt-llm-fp8"), settings, source, tmp_path / "made", context()).artifact
    assert len(list((made.path / "checkpoint").glob("rank*.safetensors"))) == 4
    assert made.details["checks"]["mapping"]["world_size"] == 4


def swapped(*names: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        first, second = (LAYER + name for name in names)
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return damage


def permute_q_and_k(tensors: Tensors) -> None:
    name = LAYER + "attention.qkv.weight"
    stored = tensors[name].view(torch.uint8 if tensors[name].dtype == torch.float8_e4m3fn else torch.int16)
    query, key, value = stored.split([64, 32, 32])
    order = [1, 0, 2, 3]
    moved = torch.cat([query.unflatten(0, (4, 16))[order].flatten(0, 1), key.roll(16, 0), value])
    tensors[name] = moved.view(tensors[name].dtype)


def without(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(LAYER + name)


def with_value(name: str, value: float) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[LAYER + name] = torch.full_like(tensors[LAYER + name], value)

    return damage


def every_scale_one(suffix: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors |= {name: torch.ones(1) for name in tensors if name.endswith(suffix)}

    return damage


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


def check_damage(made: Path, student: Path, name: str, damage: Any, message: str) -> None:
    file = made / "checkpoint" / "rank0.safetensors"
    exporter_of(name).verify(made, student, OPTIONS)
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(VerificationError, match=message):
        exporter_of(name).verify(made, student, OPTIONS)


@pytest.mark.parametrize("name", ["tensorrt-llm", "tensorrt-llm-fp8"])
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_caught(exports: Exports, tmp_path: Path, name: str, how: str) -> None:
    made = Path(shutil.copytree(exports.make(name), tmp_path / "made"))
    student = exports.quantised(tied=True).path
    check_damage(made, student, name, *DAMAGE[how])


@pytest.mark.parametrize("how", FP8_DAMAGE)
def test_damaged_scales_are_caught(exports: Exports, tmp_path: Path, how: str) -> None:
    made = Path(shutil.copytree(exports.make("tensorrt-llm-fp8"), tmp_path / "made"))
    check_damage(made, exports.quantised(tied=True).path, "tensorrt-llm-fp8", *FP8_DAMAGE[how])


@pytest.fixture(scope="module")
def with_cache(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP8 export with an FP8 cache; not to be changed."""
    source = exports.quantised(tied=True, fp8_kv_cache=True)
    out_dir = tmp_path_factory.mktemp("exports") / "cache"
    return execute(export_stage("tensorrt-llm-fp8"), Export(), source, out_dir, context()).artifact.path


CACHE_DAMAGE = {
    "dropped": (without("attention.kv_cache_scaling_factor"), "lacks a tensor"),
    "zero": (with_value("attention.kv_cache_scaling_factor", 0.0), "unusable"),
    "inf": (with_value("attention.k_cache_scaling_factor", float("inf")), "unusable"),
    "other": (with_value("attention.kv_cache_scaling_factor", 1.25), "does not follow from calibration"),
    "other values": (with_value("attention.v_cache_scaling_factor", 0.5), "does not follow"),
}


@pytest.mark.parametrize("how", CACHE_DAMAGE)
def test_damaged_cache_scales_are_caught(
    exports: Exports, with_cache: Path, tmp_path: Path, how: str
) -> None:
    made = Path(shutil.copytree(with_cache, tmp_path / "made"))
    student = exports.quantised(tied=True, fp8_kv_cache=True).path
    check_damage(made, student, "tensorrt-llm-fp8", *CACHE_DAMAGE[how])


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
            exporter_of(name).verify(made, student, OPTIONS)
        assert str(caught.value.where) == f"{name}: {field}"


@pytest.mark.parametrize("how", ["gate and up", "q and k"])
@pytest.mark.parametrize("name", ["tensorrt-llm-fp16", "tensorrt-llm-fp8"])
def test_verify_compares_a_checkpoint_with_its_source(
    exports: Exports, tmp_path: Path, name: str, how: str
) -> None:
    """Written wrong from the start: the record's hashes are those of the wrong files."""
    source = exports.student(tied=True)
    if FORMATS[name].needs_fp8:
        source = exports.quantised(tied=True).path
    made = Path(shutil.copytree(exports.make(name), tmp_path / "made"))
    assert verify_directory(made, source=source).checked[0].found["format"] == name
    file, (damage, message) = made / "checkpoint" / "rank0.safetensors", DAMAGE[how]
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    record_again(made)
    assert verify_directory(made).checked[0].status == "ok"  # by itself it is whole
    with pytest.raises(VerificationError, match=message):
        verify_directory(made, source=source)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def llama31(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student of Llama-3.1's rope, quantised, in both formats; not to be changed."""
    root = tmp_path_factory.mktemp("llama31")
    rope = {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3}, "rope_scaling": {**LLAMA3}}
    model = make_model(rope_theta=500_000.0, **rope).to(torch.bfloat16)
    student = artifact_of(save_checkpoint(root / "student", model))
    config = QuantizeStageConfig(calibration=Calibration(data=str(exports.text), size=4, seq_len=64))
    source = execute(QUANTIZE, config, student, root / "quantised", context()).artifact
    made = {"quantised": source.path}
    for name in ("huggingface-fp8", "tensorrt-llm-fp8"):
        made[name] = execute(export_stage(name), Export(), source, root / name, context()).artifact.path
    return made


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
    with pytest.raises(VerificationError, match="config differs"):
        exporter_of(name).verify(copy, llama31["quantised"], OPTIONS)


@pytest.mark.parametrize("name", ["tensorrt-llm", "tensorrt-llm-fp8"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotary_base", 10_000.0),
        ("norm_epsilon", 1e-5),
        ("rotary_scaling", {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_a_config_of_another_model_is_caught(
    exports: Exports, tmp_path: Path, name: str, field: str, value: object
) -> None:
    made = Path(shutil.copytree(exports.make(name), tmp_path / "made"))
    file = made / "checkpoint" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(VerificationError, match="config differs"):
        exporter_of(name).verify(made, exports.quantised(tied=True).path, OPTIONS)


def test_fp8_of_what_was_not_quantised_is_a_usage_error(exports: Exports, tmp_path: Path) -> None:
    source = artifact_of(exports.student(tied=True))
    with pytest.raises(UsageError, match="was not quantised"):
        execute(export_stage("tensorrt-llm-fp8"), Export(), source, tmp_path / "made", context())


def test_without_a_builder_the_script_is_left_and_a_required_engine_is_an_error(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = artifact_of(exports.student(tied=True))
    made = execute(export_stage("tensorrt-llm"), Export(), source, tmp_path / "made", context()).artifact
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
    required = Export(tensorrt_llm=TensorRTLLM(require_engine=True))
    with pytest.raises(DependencyError, match="no trtllm-build"):
        execute(export_stage("tensorrt-llm"), required, source, tmp_path / "required", context())
