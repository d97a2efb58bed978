from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.quantization.amax import FP8_DIRECTORY
from compressor.runs.artifact import read_artifact
from exporters.verification.verify import verify_directory
from tests.corruptions.formats import change_tensors
from tests.records import record_again
from tests.unit.exporters.conftest import Exports, config_of, set_fields


def test_a_checkpoint_an_export_and_the_quantised_artifact_pass(
    exports: Exports, any_checkpoint: Path
) -> None:
    report = verify_directory(any_checkpoint)
    status = "no record: contents not verified"
    assert (report.kind, report.checked[0].status) == ("checkpoint", status)
    for name in ("huggingface", "huggingface-fp8", "onnx"):
        report = verify_directory(exports.make(name))
        assert (report.kind, report.checked[0].found["format"]) == ("export", name)
        assert "not compared" in str(report.checked[0].found["contents"])
    quantised = verify_directory(exports.quantised(tied=True).path).checked[0].to_json()
    assert quantised["fp8"] == {"num_equal_fp8_weights": 21, "num_equal_tensors": 8} | {
        "scales_follow_recorded_amax": True
    }


def test_a_record_with_another_count_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = exports.copy("huggingface", tmp_path / "made")
    replace(read_artifact(made), num_parameters=7).write()
    with pytest.raises(VerificationError, match="another number of parameters"):
        verify_directory(made)


@pytest.mark.parametrize("name", ["huggingface", "huggingface-fp8", "onnx"])
def test_an_export_is_compared_with_its_source_again(exports: Exports, name: str) -> None:
    report = verify_directory(exports.make(name), source=exports.source(name).path)
    entry = report.checked[0]
    assert entry.found["contents"] == "compared with its source"
    assert entry.status == {"huggingface": "bit-equal", "huggingface-fp8": "reported"}.get(name, "passed")
    logits = entry.found["logits"]
    assert logits == {} or logits["all"]["num_positions"] > 2000  # type: ignore[index, call-overload]
    json.dumps(report.to_json())


def test_a_source_that_is_not_there_is_a_usage_error(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="source does not exist"):
        verify_directory(exports.make("huggingface"), source=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.onnx.data", "tokenizer.json", "verification.json"])
def test_a_changed_byte_is_caught(exports: Exports, tmp_path: Path, name: str) -> None:
    made = exports.copy("onnx" if "onnx" in name else "huggingface", tmp_path / "made")
    data = bytearray((made / name).read_bytes())
    data[len(data) // 2] ^= 1
    (made / name).write_bytes(data)
    with pytest.raises(VerificationError, match=r"has changed|is corrupt"):
        verify_directory(made)


def test_a_missing_and_an_added_file_are_caught(exports: Exports, tmp_path: Path) -> None:
    made = exports.copy("onnx", tmp_path / "made")
    (made / "added.txt").write_text("x")
    with pytest.raises(VerificationError, match=r"added\.txt"):
        verify_directory(made)
    (made / "added.txt").unlink()
    (made / "genai_config.json").unlink()
    with pytest.raises(VerificationError, match=r"genai_config\.json"):
        verify_directory(made)


@pytest.mark.parametrize("name", ["huggingface", "onnx", "huggingface-fp8"])
@pytest.mark.parametrize("record", ["artifact.json", "verification.json"])
def test_an_export_without_a_record_was_never_verified(
    exports: Exports, tmp_path: Path, name: str, record: str
) -> None:
    made = exports.copy(name, tmp_path / "made")
    (made / record).unlink()
    with pytest.raises(VerificationError, match="never verified"):
        verify_directory(made)


def test_a_stage_without_its_record_was_never_verified(exports: Exports, tmp_path: Path) -> None:
    made = Path(shutil.copytree(exports.quantised(tied=True).path, tmp_path / "made"))
    (made / "artifact.json").unlink()
    with pytest.raises(VerificationError, match=r"never verified[\s\S]*amax"):
        verify_directory(made)


@pytest.fixture
def checkpoint(exports: Exports, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports.student(tied=True), tmp_path / "checkpoint"))


def test_a_truncated_file_is_caught(checkpoint: Path) -> None:
    file = checkpoint / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(VerificationError, match="truncated or corrupt"):
        verify_directory(checkpoint)


V_PROJ = "model.layers.1.self_attn.v_proj.weight"
WRONG: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "lacks a tensor": lambda tensors: tensors.pop(V_PROJ),
    "shape": lambda tensors: tensors.update({V_PROJ: tensors[V_PROJ][:16]}),
    "not finite": lambda tensors: tensors[V_PROJ].fill_(float("nan")),
    "number of parameters": lambda tensors: tensors.update(extra=torch.ones(3)),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_tensors_are_caught_by_name(checkpoint: Path, message: str) -> None:
    change_tensors(checkpoint / WEIGHTS_FILE, WRONG[message])
    with pytest.raises(VerificationError, match=message):
        verify_directory(checkpoint)


def test_nan_in_fp8_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = exports.copy("huggingface-fp8", tmp_path / "fp8")
    (made / "verification.json").unlink()
    (made / "artifact.json").unlink()
    assert verify_directory(made).checked[0].found["precision"] == "fp8"
    name = "model.layers.0.mlp.up_proj.weight"
    nan = 0x7F
    change_tensors(made / WEIGHTS_FILE, lambda tensors: tensors[name].view(torch.uint8)[0, 0].fill_(nan))
    with pytest.raises(VerificationError, match=r"not finite[\s\S]*layers\.0\.mlp\.up_proj"):
        verify_directory(made)


FOREIGN: dict[str, dict[str, object]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "hqq": {"quant_method": "hqq"},
}


def packed(directory: Path, stated: dict[str, object]) -> None:
    """As other tools leave it: packed integers and scales in place of the linear layers' weights."""

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            stem = name.removesuffix("weight")
            tensors[f"{stem}qweight"] = torch.zeros(8, 8, dtype=torch.int32)
            tensors[f"{stem}scales"] = torch.ones(8, 8, dtype=torch.float16)
            del tensors[name]

    set_fields(directory / "config.json", quantization_config=stated)
    change_tensors(directory / WEIGHTS_FILE, pack)


@pytest.mark.parametrize("method", FOREIGN)
def test_a_checkpoint_of_another_method_is_named_not_called_broken(checkpoint: Path, method: str) -> None:
    packed(checkpoint, FOREIGN[method])
    with pytest.raises(UnsupportedError, match=f"quantised with {method}"):
        verify_directory(checkpoint)


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors", "modelopt"])
def test_an_fp8_checkpoint_without_its_record_is_still_refused(checkpoint: Path, method: str) -> None:
    packed(checkpoint, {"quant_method": method})
    with pytest.raises(VerificationError, match="lacks its quantisation record"):
        verify_directory(checkpoint)


def test_another_method_in_an_export_of_ours_is_an_edit(exports: Exports, tmp_path: Path) -> None:
    made = exports.copy("huggingface-fp8", tmp_path / "fp8")
    stated = {**config_of(made)["quantization_config"], "quant_method": "awq"}
    set_fields(made / "config.json", quantization_config=stated)
    record_again(made)
    with pytest.raises(VerificationError, match="quantisation record says something else"):
        verify_directory(made)


def test_nothing_to_verify_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to verify"):
        verify_directory(tmp_path)


def edited(made: Path, to: Path, name: str, **fields: object) -> Path:
    """A copy whose faulty writer wrote other fields, and recorded its file faithfully."""
    copy = Path(shutil.copytree(made, to))
    set_fields(copy / name, **fields)
    record_again(copy)
    return copy


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        {"auto_map": {}},
        {"torch_dtype": "float16"},
        {"dtype": "float32"},
        {"dtype": None},
        {"torch_dtype": "no_such"},
    ],
)
@pytest.mark.parametrize("name", ["huggingface", "huggingface-fp8"])
def test_a_config_of_ours_names_no_code_and_the_dtype_of_its_tensors(
    exports: Exports, tmp_path: Path, name: str, fields: dict[str, object]
) -> None:
    """With no source to compare with; a checkpoint made elsewhere may name code."""
    made = edited(exports.make(name), tmp_path / "made", "config.json", **fields)
    with pytest.raises(VerificationError) as caught:
        verify_directory(made)
    assert str(caught.value.where) == f"{made / 'config.json'}: {next(iter(fields))}"


def test_a_checkpoint_made_elsewhere_may_name_code_and_any_dtype(checkpoint: Path) -> None:
    code = {"AutoConfig": "configuration.Config"}
    set_fields(checkpoint / "config.json", auto_map=code, torch_dtype="float16")
    assert verify_directory(checkpoint).kind == "checkpoint"


@pytest.mark.parametrize("part", [".", FP8_DIRECTORY])
def test_a_quantised_stage_is_held_to_both_of_its_configs(
    exports: Exports, tmp_path: Path, part: str
) -> None:
    made = exports.quantised(tied=True).path
    copy = edited(made, tmp_path / "made", f"{part}/config.json", torch_dtype="float16")
    with pytest.raises(VerificationError, match="another dtype than the tensors"):
        verify_directory(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_max_length", 7),
        ("clean_up_tokenization_spaces", True),
        ("padding_side", "left"),
        ("add_prefix_space", True),
    ],
)
@pytest.mark.parametrize("name", ["huggingface", "huggingface-fp8", "onnx"])
def test_an_exported_tokenizer_config_is_the_sources(
    exports: Exports, tmp_path: Path, name: str, field: str, value: object
) -> None:
    source = exports.source(name).path
    assert json.loads((source / "tokenizer_config.json").read_text()).get(field) != value
    made = edited(exports.make(name), tmp_path / "made", "tokenizer_config.json", **{field: value})
    # transformers 4.57 reads a prefix from the config, so its own tokens differ first.
    with pytest.raises(VerificationError, match=f"{field}|encodes a text differently"):
        verify_directory(made, source=source)


@pytest.mark.parametrize(
    ("missing", "helps"),
    [
        ("manifest.json", "in another directory"),
        ("recipe.yaml", "repeat the command that made this run"),
        ("plan.json", "repeat the command that made this run"),
    ],
)
def test_a_run_without_one_of_its_records_says_what_helps(tmp_path: Path, missing: str, helps: str) -> None:
    """Repeating the command writes recipe and plan again; without a manifest it refuses the directory."""
    for name in {"manifest.json", "recipe.yaml", "plan.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(VerificationError, match=missing) as caught:
        verify_directory(tmp_path)
    assert helps in str(caught.value.hint)
