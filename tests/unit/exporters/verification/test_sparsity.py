"""2:4 through every export: the written tensors, and a planted non-zero in each format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.choices.formats import FORMATS
from compressor.core.errors import VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.models.sparse.pattern import Pattern
from compressor.models.sparse.record import SparsityRecord, carry_sparsity
from compressor.quantization.amax import read_amax
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Calibration, Export, Sparsify
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import execute
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig
from exporters.export_stage import export_stage
from exporters.onnx.sparsity import stored_names
from exporters.registry import exporter_of
from exporters.verification.record import read_verification
from exporters.verification.verify import verify_directory
from tests.records import record_again
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.exporters.conftest import OPTIONS, artifact_of, context
from tests.unit.exporters.tensorrt_llm import stand_in_builder


@dataclass(frozen=True)
class Sparse:
    """A sparse student and its exports, made once."""

    root: Path
    calibration: Calibration

    def student(self) -> ModelArtifact:
        dense = self.root / "dense"
        if not dense.is_dir():
            save_checkpoint(dense, make_model().to(torch.bfloat16))
        config = SparsifyStageConfig(sparsify=Sparsify(pattern="2:4"), calibration=self.calibration)
        return execute(SPARSIFY, config, artifact_of(dense), self.root / "sparse", context()).artifact

    def quantised(self) -> ModelArtifact:
        config = QuantizeStageConfig(calibration=self.calibration)
        return execute(QUANTIZE, config, self.student(), self.root / "quantised", context()).artifact

    def make(self, name: str) -> Path:
        source = self.quantised() if FORMATS[name].needs_fp8 else self.student()
        return execute(export_stage(name), Export(), source, self.root / name, context()).artifact.path


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory, make_text: Callable[..., Path]) -> Sparse:
    text = make_text(num_words=300, name="calibration.txt")
    return Sparse(tmp_path_factory.mktemp("sparse"), Calibration(data=str(text), size=4, seq_len=64))


TENSORRT_LLM: tuple[str, ...] = ("tensorrt-llm", "tensorrt-llm-fp16", "tensorrt-llm-fp8")


@pytest.mark.parametrize("name", ["huggingface", "huggingface-fp8", "onnx", "onnx-int4", *TENSORRT_LLM])
def test_every_format_keeps_the_pattern(sparse: Sparse, name: str) -> None:
    made = sparse.make(name)
    expected = {"pattern": "2:4", "num_tensors": 21}
    assert read_verification(made).checks["sparsity"] == expected
    assert verify_directory(made).checked[0].found["sparsity"] == expected


def test_a_half_precision_graph_keeps_the_pattern(sparse: Sparse, tmp_path: Path) -> None:
    """Built and checked without being run, which not every CPU can."""
    source = sparse.student()
    exporter_of("onnx-fp16").write(source.path, tmp_path, OPTIONS)
    carry_sparsity(source.path, tmp_path)
    assert exporter_of("onnx-fp16").sparsity(tmp_path)["sparsity"]["num_tensors"] == 21


def test_fp8_scales_are_those_of_the_masked_weights(sparse: Sparse) -> None:
    quantised = sparse.quantised()
    stored, amax = load_file(quantised.path / WEIGHTS_FILE), read_amax(quantised.path)
    for module in ("model.layers.0.mlp.up_proj", "model.layers.2.self_attn.q_proj"):
        weight = stored[f"{module}.weight"].float()
        assert (weight == 0).float().mean() >= 0.5
        assert amax[f"{module}.weight_amax"] == weight.abs().max()


def plant(tensors: dict[str, torch.Tensor], name: str) -> None:
    weight = tensors[name]
    view = weight.view(torch.uint8) if weight.dtype == torch.float8_e4m3fn else weight
    zero = (view[3, 8:12] == 0).nonzero()[0, 0]
    view[3, 8 + zero] = 1


@pytest.mark.parametrize("name", ["huggingface", "huggingface-fp8"])
def test_a_third_nonzero_in_a_checkpoint_is_caught(sparse: Sparse, tmp_path: Path, name: str) -> None:
    made = Path(shutil.copytree(sparse.make(name), tmp_path / "made"))
    tensors, tensor = load_file(made / WEIGHTS_FILE), "model.layers.1.mlp.down_proj.weight"
    plant(tensors, tensor)
    save_file(tensors, made / WEIGHTS_FILE, metadata={"format": "pt"})
    record_again(made)  # its sums would catch it first
    with pytest.raises(VerificationError, match=r"down_proj\.weight\[3, 8:12\]"):
        verify_directory(made)


@pytest.mark.parametrize("name", TENSORRT_LLM)
def test_a_third_nonzero_in_a_tensorrt_llm_checkpoint_is_caught(
    sparse: Sparse, tmp_path: Path, name: str
) -> None:
    made = Path(shutil.copytree(sparse.make(name), tmp_path / "made"))
    file = made / "checkpoint" / "rank0.safetensors"
    tensors = load_file(file)
    plant(tensors, "transformer.layers.1.mlp.proj.weight")
    save_file(tensors, file)
    record_again(made)
    with pytest.raises(VerificationError, match=r"down_proj\.weight\[3, 8:12\]"):
        verify_directory(made)


@pytest.mark.parametrize("name", TENSORRT_LLM)
def test_a_sparse_student_gets_a_sparse_engine_and_a_dense_twin(
    sparse: Sparse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Through the stage, with a stand-in for the builder."""
    stand_in_builder.install(tmp_path / "bin", num_chosen=0)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    source = sparse.quantised() if FORMATS[name].needs_fp8 else sparse.student()
    settings, stage = Export(), context()
    made = execute(export_stage(name), settings, source, tmp_path / "made", stage).artifact
    engine = made.details["engine"]
    assert engine["built"] is True
    assert engine["sparsity"]["engine"] == "dense: no sparse tactic was chosen"
    assert any("no sparse tactic" in warning for warning in stage.console.warnings)
    for directory in ("engine", "engine-dense"):
        assert (made.path / directory / "rank0.engine").is_file()
    assert "--gemm_plugin disable" in engine["commands"]["engine"]
    assert engine["commands"]["engine"].endswith("--weight_sparsity")
    assert "--weight_sparsity" not in engine["commands"]["engine-dense"]
    assert verify_directory(made.path).checked[0].status == "ok"


def test_only_two_of_four_is_offered_to_sparse_tactics(sparse: Sparse, tmp_path: Path) -> None:
    source = sparse.student()
    copy = Path(shutil.copytree(source.path, tmp_path / "student"))
    record = json.loads((copy / "sparsity.json").read_text())
    (copy / "sparsity.json").write_text(json.dumps({**record, "pattern": "4:8"}))
    made = execute(export_stage("tensorrt-llm"), Export(), artifact_of(copy), tmp_path / "made", context())
    script = (made.artifact.path / "build-engine.sh").read_text()
    assert "--weight_sparsity" not in script
    script = (sparse.make("tensorrt-llm") / "build-engine.sh").read_text()
    assert script.count("docker run") == 2
    assert script.count("--weight_sparsity") == 1


@pytest.mark.parametrize("name", ["onnx", "onnx-int4"])
def test_a_dense_graph_is_caught(sparse: Sparse, exports: Any, tmp_path: Path, name: str) -> None:
    dense = Path(shutil.copytree(exports.make(name), tmp_path / "dense"))
    shutil.copyfile(sparse.make(name) / "sparsity.json", dense / "sparsity.json")
    with pytest.raises(VerificationError, match="recorded as 2:4 sparse is not"):
        exporter_of(name).sparsity(dense)


def test_a_third_nonzero_in_an_int4_blob_is_caught(sparse: Sparse, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    made = Path(shutil.copytree(sparse.make("onnx-int4"), tmp_path / "made"))
    model = onnx.load(made / "model.onnx")
    node = next(
        node
        for node in model.graph.node
        if node.op_type == "MatMulNBits" and "layers.1.mlp.down" in node.input[1]
    )
    blob = next(entry for entry in model.graph.initializer if entry.name == node.input[1])
    values = np.array(numpy_helper.to_array(blob))
    # The first four inputs of output 2 share two bytes, low half first; 8 is zero.
    first, second = values[2, 0, 0], values[2, 0, 1]
    halves = [first & 15, first >> 4, second & 15, second >> 4]
    halves[halves.index(8)] = 9
    values[2, 0, 0], values[2, 0, 1] = halves[0] | halves[1] << 4, halves[2] | halves[3] << 4
    nonzero = sum(half != 8 for half in halves)
    blob.CopyFrom(numpy_helper.from_array(values, blob.name))
    onnx.save(model, made / "model.onnx")
    if nonzero > 2:
        with pytest.raises(VerificationError, match=r"down_proj\.weight\[2, 0:4\]"):
            exporter_of("onnx-int4").sparsity(made)
    else:
        pytest.fail("rounding to int4 left fewer than two non-zeros here: plant elsewhere")


@pytest.mark.parametrize("name", ["onnx", "onnx-fp16"])
def test_a_third_nonzero_in_a_graphs_matrix_is_caught(sparse: Sparse, tmp_path: Path, name: str) -> None:
    """Stored transposed, inputs in rows; the key's share of joined projections, or its own matrix."""
    import onnx
    from onnx import numpy_helper

    source = sparse.student()
    exporter_of(name).write(source.path, tmp_path, OPTIONS)
    carry_sparsity(source.path, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    stored = {entry.name: entry for entry in model.graph.initializer}
    # Joined, 64 queries come before the keys.
    starts = {"model.layers.1.attn.qkv_proj.MatMul.weight": 64, "model.layers.1.attn.k_proj.MatMul.weight": 0}
    matrix = next(stored[key] for key in starts if key in stored)
    values = np.array(numpy_helper.to_array(matrix))
    output = starts[matrix.name] + 3
    values[8 + int((values[8:12, output] == 0).argmax()), output] = 1
    matrix.CopyFrom(numpy_helper.from_array(values, matrix.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match=r"layers\.1\.self_attn\.k_proj\.weight\[3, 8:12\]"):
        exporter_of(name).sparsity(tmp_path)


def test_a_pattern_demanded_of_a_graph_must_be_recorded(sparse: Sparse, exports: Any) -> None:
    made = sparse.make("onnx")
    assert verify_directory(made, pattern=Pattern()).checked[0].found["sparsity"]["num_tensors"] == 21
    with pytest.raises(VerificationError, match="has no record of the sparsity"):
        verify_directory(made, pattern=Pattern(1, 4))
    with pytest.raises(VerificationError, match="has no record of the sparsity"):
        verify_directory(exports.make("onnx"), pattern=Pattern())


@pytest.mark.parametrize("skipped", [(), ("q_proj",), ("v_proj",), ("q_proj", "v_proj"), ("k_proj",)])
def test_rows_of_joined_projections_are_found(skipped: tuple[str, ...]) -> None:
    rows = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
    shapes = {
        f"model.layers.0.self_attn.{name}.weight": (size, 64)
        for name, size in rows.items()
        if name not in skipped
    }
    sparsity = SparsityRecord(pattern=Pattern(), model_type="llama", shapes=shapes)
    found = stored_names(sparsity, {"model.layers.0.attn.qkv_proj.MatMul.weight"})
    joined = torch.arange(128)
    starts = {"q_proj": 0, "k_proj": 64, "v_proj": 96}
    for name in shapes:
        part = name.split(".")[-2]
        assert joined[found[name][1]].tolist() == list(range(starts[part], starts[part] + rows[part]))
