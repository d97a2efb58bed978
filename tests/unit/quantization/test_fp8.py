from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file

from compressor.core.errors import DependencyError, UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, read_amax
from compressor.quantization.e4m3 import E4M3, scale_of, to_e4m3
from compressor.runs.artifact import sha256_of_file
from tests.tiny_models import edit_tensors
from tests.unit.quantization.conftest import Quantiser, student_artifact

LAYERS = 3

MODELOPT = Version(version("nvidia-modelopt"))


def hashes(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): sha256_of_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_are_the_students_rounded_once_with_the_recorded_maxima(
    tmp_path: Path, quantise: Quantiser, tied: bool, dtype: str
) -> None:
    source = student_artifact(tmp_path / "student", tie_word_embeddings=tied)
    made = quantise(source, tmp_path / "quantize", dtype=dtype).artifact.path
    student, amax = load_file(source.path / WEIGHTS_FILE), read_amax(made)
    exported = load_file(made / FP8_DIRECTORY / WEIGHTS_FILE)
    num_fp8 = 0
    for name, weight in student.items():
        if exported[name].dtype == E4M3:
            num_fp8 += 1
            assert torch.equal(amax[f"{name}_amax"], weight.float().abs().max())
            expected = to_e4m3(weight, scale_of(amax[f"{name}_amax"]))
            assert torch.equal(exported[name].view(torch.uint8), expected.view(torch.uint8)), name
            assert torch.equal(exported[f"{name}_scale"].reshape(()), scale_of(amax[f"{name}_amax"]))
        else:
            assert exported[name].dtype == torch.bfloat16
            assert torch.equal(exported[name], weight), name
    assert num_fp8 == LAYERS * 7


def test_the_16_bit_checkpoint_stays_as_it_was_and_all_maxima_are_recorded(
    tmp_path: Path, quantise: Quantiser
) -> None:
    source = student_artifact(tmp_path / "student")
    made = quantise(source, tmp_path / "quantize").artifact.path
    for name in (WEIGHTS_FILE, "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert sha256_of_file(made / name) == sha256_of_file(source.path / name), name
    amax = read_amax(made)
    assert len(amax) == LAYERS * (7 * 2 + 2)
    assert {value.dtype for value in amax.values()} == {torch.float32}
    for layer in range(LAYERS):
        for kind in ("k_amax", "v_amax"):
            assert amax[f"model.layers.{layer}.self_attn.{kind}"] > 0


@pytest.mark.parametrize("wanted", [True, False])
def test_the_kv_cache_is_exported_in_fp8_only_when_asked(
    tmp_path: Path, quantise: Quantiser, wanted: bool
) -> None:
    made = quantise(student_artifact(tmp_path / "s"), tmp_path / "q", fp8_kv_cache=wanted).artifact.path
    exported = load_file(made / FP8_DIRECTORY / WEIGHTS_FILE)
    amax = read_amax(made)
    scales = {name for name in exported if name.endswith((".k_scale", ".v_scale"))}
    assert len(scales) == (2 * LAYERS if wanted else 0)
    quantization = json.loads((made / FP8_DIRECTORY / "hf_quant_config.json").read_text())["quantization"]
    assert quantization["quant_algo"] == "FP8"
    assert quantization["kv_cache_quant_algo"] == ("FP8" if wanted else None)
    if wanted:
        found = exported["model.layers.1.self_attn.v_proj.v_scale"].reshape(())
        expected = scale_of(amax["model.layers.1.self_attn.v_amax"])
        # ModelOpt 0.37 clamps KV scales to 1 in this format too, later versions do not.
        assert torch.equal(found, expected.clamp_min(1) if Version("0.38") > MODELOPT else expected)


def test_output_is_byte_identical_from_run_to_run(tmp_path: Path, quantise: Quantiser) -> None:
    source = student_artifact(tmp_path / "student")
    first, second = (quantise(source, tmp_path / name).artifact.path for name in ("first", "second"))
    assert hashes(first) == hashes(second)


def test_leftovers_of_a_killed_run_do_not_survive(tmp_path: Path, quantise: Quantiser) -> None:
    source = student_artifact(tmp_path / "student")
    clean = quantise(source, tmp_path / "clean").artifact.path
    partial = tmp_path / "again.partial"
    (partial / FP8_DIRECTORY).mkdir(parents=True)
    (partial / FP8_DIRECTORY / "model-00001-of-00002.safetensors").write_bytes(b"half")
    inputs = json.loads((clean / "artifact.json").read_text())["inputs"]
    (partial / "stage.json").write_text(json.dumps(inputs))
    assert hashes(quantise(source, tmp_path / "again").artifact.path) == hashes(clean)


def test_the_fp8_config_is_read_alike_by_both_generations(tmp_path: Path, quantise: Quantiser) -> None:
    made = quantise(student_artifact(tmp_path / "s"), tmp_path / "q").artifact.path / FP8_DIRECTORY
    config = json.loads((made / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50_000.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["quantization_config"]["quant_algo"] == "FP8"
    tokenizer = json.loads((made / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("generation", [None, {"eos_token_id": [2, 3], "temperature": 0.6}])
def test_settings_of_generation_are_the_students(
    tmp_path: Path, quantise: Quantiser, generation: dict[str, Any] | None
) -> None:
    """ModelOpt's exporter makes some up where there are none."""
    source = student_artifact(tmp_path / "s")
    file = source.path / "generation_config.json"
    file.unlink(missing_ok=True)
    if generation is not None:
        file.write_text(json.dumps(generation))
    made = quantise(source, tmp_path / "q").artifact.path / FP8_DIRECTORY / file.name
    assert made.exists() is (generation is not None)
    assert generation is None or json.loads(made.read_text()) == generation


def test_nothing_is_printed_to_stdout(
    tmp_path: Path, quantise: Quantiser, capfd: pytest.CaptureFixture[str]
) -> None:
    quantise(student_artifact(tmp_path / "s"), tmp_path / "q")
    assert capfd.readouterr().out == ""


def test_fewer_windows_than_asked_for_are_a_warning(tmp_path: Path, quantise: Quantiser) -> None:
    outcome = quantise(student_artifact(tmp_path / "s"), tmp_path / "q", size=100_000)
    assert any(warning.endswith("not 100000") for warning in outcome.warnings)


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("mlp.up_proj", 0.0, "mlp.up_proj"),
        ("self_attn.k_proj", float("nan"), "self_attn.k_proj.weight"),
        ("input_layernorm", float("inf"), "self_attn.q_proj"),  # its input overflows
    ],
)
def test_weights_and_activations_without_a_scale_are_refused_by_name(
    name: str, value: float, refused: str, tmp_path: Path, quantise: Quantiser
) -> None:
    source = student_artifact(tmp_path / "s")
    layer = "model.layers.1."
    edit_tensors(source.path, lambda tensors: tensors[f"{layer}{name}.weight"].fill_(value))
    with pytest.raises(VerificationError, match=re.escape(layer + refused)):
        quantise(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_missing_modelopt_is_a_dependency_error(
    tmp_path: Path, quantise: Quantiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = student_artifact(tmp_path / "s")
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    with pytest.raises(DependencyError, match="nvidia-modelopt"):
        quantise(source, tmp_path / "q")


def test_what_is_quantised_already_is_refused(tmp_path: Path, quantise: Quantiser) -> None:
    source = student_artifact(tmp_path / "s")
    (source.path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UnsupportedError):
        quantise(source, tmp_path / "q")


def test_maxima_of_a_checkpoint_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was not quantised"):
        read_amax(tmp_path)
    (tmp_path / AMAX_FILE).write_bytes(b"not safetensors")
    with pytest.raises(VerificationError):
        read_amax(tmp_path)
