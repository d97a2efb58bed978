from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.quantization.reader import load_fp8_model
from compressor.runs.artifact import sha256_of_file
from exporters.checks.checkpoint import check_checkpoint
from exporters.huggingface import check_fp8_checkpoint
from exporters.verification.record import read_verification
from exporters.verification.verify import verify_directory
from tests.corruptions.faults import chosen, fp8_faults, swap, tensors
from tests.corruptions.formats import change_json, change_tensors, place
from tests.unit.exporters.conftest import Exports, artifact_of, config_of, export, record_of, refuses

Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("tied", [True, False])
def test_the_16_bit_export_is_exact(exports: Exports, tied: bool) -> None:
    made, student = exports.make("huggingface", tied=tied), exports.student(tied=tied)
    assert sha256_of_file(made / WEIGHTS_FILE) == sha256_of_file(student / WEIGHTS_FILE)
    record, config = record_of(made), config_of(made)
    assert (record["status"], record["logits"]) == ("bit-equal", {})
    assert record["checks"]["num_equal_tensors"] == len(load_file(student / WEIGHTS_FILE))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50_000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"


def test_a_config_of_one_generation_becomes_one_of_both(exports: Exports, tmp_path: Path) -> None:
    student = Path(shutil.copytree(exports.student(tied=True), tmp_path / "student"))
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        change_json(student / "config.json", drop(key))
    if int(transformers.__version__.split(".")[0]) < 5:
        with pytest.raises(UnsupportedError, match="would misread the rope"):
            export("huggingface", artifact_of(student), tmp_path / "made")
        return
    made = export("huggingface", artifact_of(student), tmp_path / "made").path
    assert config_of(made)["rope_theta"] == 50_000.0
    record = read_verification(made)  # what had to be rewritten is compared by what it computes
    assert (record.status, record.logits["all"].max_abs) == ("passed", 0)
    assert record.logits["all"].num_positions >= 2000


def test_bit_equal_files_are_not_computed_with_again(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_keywords: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    source = artifact_of(exports.student(tied=True))
    made = export("huggingface", source, tmp_path / "made")
    assert made.details["status"] == "bit-equal"
    assert verify_directory(made.path, source=source.path).checked[0].status == "bit-equal"


@pytest.mark.parametrize("value", [-0.0, float("nan")])
def test_a_bit_that_no_comparison_of_values_sees_is_caught(
    exports: Exports, tmp_path: Path, value: float
) -> None:
    """-0.0 equals 0.0, and the same NaN on both sides is bit-equal."""
    made, student = (exports.copy("huggingface", tmp_path / name) for name in "ab")
    for directory, number in ((made, value), (student, abs(value))):
        change_tensors(directory / WEIGHTS_FILE, set_value("model.norm.weight", number))
    refuses("huggingface", made, student, match=r"model\.norm\.weight")


def set_value(name: str, value: float) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[name].view(-1).__setitem__(3, value)


GENERATION = "generation_config.json"
DAMAGE: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "rope base": ("config.json", lambda config: config.pop("rope_theta"), "rope_theta"),
    "weight": (
        WEIGHTS_FILE,
        set_value("model.layers.1.mlp.down_proj.weight", 7.0),
        r"layers\.1\.mlp\.down_proj[\s\S]*1 of 12288",
    ),
    "added weight": (WEIGHTS_FILE, lambda tensors: tensors.update(extra=torch.ones(1)), "extra"),
    "end token": (GENERATION, lambda config: config.update(eos_token_id=[1, 2]), "eos_token_id"),
    "sampling": (GENERATION, lambda config: config.update(temperature=0.2), "temperature"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_a_16_bit_checkpoint_is_caught(exports: Exports, tmp_path: Path, how: str) -> None:
    made, (name, change, message) = exports.copy("huggingface", tmp_path / "made"), DAMAGE[how]
    (change_tensors if name == WEIGHTS_FILE else change_json)(made / name, change)
    refuses("huggingface", made, exports.student(tied=True), match=message)


def test_a_lost_generation_config_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = exports.copy("huggingface", tmp_path / "made")
    (made / GENERATION).unlink()
    refuses("huggingface", made, exports.student(tied=True), match="generation_config")


@pytest.mark.parametrize("tied", [True, False])
def test_the_fp8_export_is_checked_number_by_number_and_its_logits_reported(
    exports: Exports, tied: bool
) -> None:
    made = exports.make("huggingface-fp8", tied=tied)
    record = record_of(made)
    assert (record["status"], record["tolerance"]) == ("reported", None)
    assert record["checks"]["num_equal_fp8_weights"] == 21
    assert record["checks"]["scales_follow_recorded_amax"] is True
    assert 0 < record["logits"]["text"]["kl"] < 1.0
    assert not (made / "amax.safetensors").exists()  # loaders read every safetensors file they find


MLP = "model.layers.0.mlp."
FP8_DAMAGE = {
    **{fault.name: fault.plant for fault in fp8_faults(WEIGHTS_FILE)},
    "gate and up": tensors(swap(f"{MLP}gate_proj.", f"{MLP}up_proj.")),
    "norm": tensors(set_value("model.norm.weight", 7.0)),
}


@pytest.mark.parametrize("how", FP8_DAMAGE)
def test_damage_to_an_fp8_checkpoint_is_caught(exports: Exports, tmp_path: Path, how: str) -> None:
    made, quantised = exports.copy("huggingface-fp8", tmp_path / "made"), exports.quantised(tied=True).path
    assert check_fp8_checkpoint(made, quantised)["num_equal_tensors"] == 8
    FP8_DAMAGE[how](made)
    with pytest.raises(VerificationError):
        check_fp8_checkpoint(made, quantised)


@chosen
def drop(document: dict[str, Any], dotted: str) -> None:
    section, leaf = place(document, dotted)
    section.pop(leaf, None)


@chosen
def put(document: dict[str, Any], dotted: str, value: Any) -> None:
    section, leaf = place(document, dotted)
    section[leaf] = value


QUANT, INSIDE = "hf_quant_config.json", "quantization_config"
GROUP = {"weights": {"dynamic": False, "num_bits": 4, "type": "int"}, "targets": ["Linear"]}
CACHE = {"dynamic": False, "num_bits": 8, "type": "float"}
PUT: dict[str, tuple[str, str, Any]] = {
    "another algorithm": (QUANT, "quantization.quant_algo", "NVFP4"),
    "a cache": (QUANT, "quantization.kv_cache_quant_algo", "FP8"),
    "groups": (QUANT, "quantization.group_size", 128),
    "head quantised": (QUANT, "quantization.exclude_modules", []),
    "a layer left out": (QUANT, "quantization.exclude_modules", ["lm_head", "model.layers.0.*"]),
    "per layer": (QUANT, "quantization.quantized_layers", {"a": {}}),
    "another method": ("config.json", f"{INSIDE}.quant_method", "fp8"),
    "a layer ignored": ("config.json", f"{INSIDE}.ignore", ["lm_head", "*down_proj"]),
    "head not ignored": ("config.json", f"{INSIDE}.ignore", ["model.embed_tokens"]),
    "int4": ("config.json", f"{INSIDE}.config_groups", {"group_0": GROUP}),
    "a cache in the config": ("config.json", f"{INSIDE}.kv_cache_scheme", CACHE),
}
RECORD_FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "no section in the config": ("config.json", drop(INSIDE), "lacks its quantisation record"),
    "no section in the file": (QUANT, drop("quantization"), "quantization"),
    **{how: (file, put(field, value), field.split(".")[1]) for how, (file, field, value) in PUT.items()},
}


@pytest.mark.parametrize("how", RECORD_FAULTS)
def test_a_quantisation_record_of_something_else_is_caught(
    exports: Exports, tmp_path: Path, how: str
) -> None:
    made, quantised = exports.copy("huggingface-fp8", tmp_path / "made"), exports.quantised(tied=True).path
    check_fp8_checkpoint(made, quantised)
    name, change, message = RECORD_FAULTS[how]
    change_json(made / name, change)
    with pytest.raises(VerificationError, match=message):
        check_fp8_checkpoint(made, quantised)
    with pytest.raises(VerificationError, match=message):
        check_checkpoint(made)


@pytest.mark.parametrize("kept", ["config.json", QUANT, "neither"])
def test_an_fp8_checkpoint_without_its_record_is_refused_wherever_it_is_read(
    exports: Exports, tmp_path: Path, kept: str
) -> None:
    made = exports.copy("huggingface-fp8", tmp_path / "made")
    if kept != QUANT:
        (made / QUANT).unlink()
    if kept != "config.json":
        change_json(made / "config.json", drop(INSIDE))
    with pytest.raises(VerificationError, match="lacks its quantisation record"):
        check_checkpoint(made)
    with pytest.raises(VerificationError, match="lacks its quantisation record"):
        load_fp8_model(made, dtype="float32", device="cpu")


def test_a_checkpoint_that_lacks_a_tensor_is_not_taken_for_its_copy(exports: Exports, tmp_path: Path) -> None:
    source = Path(shutil.copytree(exports.student(tied=True), tmp_path / "source"))
    change_tensors(source / WEIGHTS_FILE, lambda tensors: tensors.__delitem__("model.norm.weight"))
    with pytest.raises(VerificationError, match=r"model\.norm\.weight"):
        export("huggingface", artifact_of(source), tmp_path / "made")


@pytest.mark.parametrize("name", ["huggingface-fp8", "tensorrt-llm-fp8"])
def test_fp8_of_what_was_not_quantised_is_a_usage_error(exports: Exports, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="was not quantised"):
        export(name, artifact_of(exports.student(tied=True)), tmp_path / "made")
