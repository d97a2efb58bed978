"""2:4 through every export: the written tensors, and a planted non-zero in each format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.models.sparse.pattern import Pattern
from compressor.models.sparse.record import SparsityRecord, carry_sparsity
from compressor.quantization.amax import read_amax
from compressor.recipe.recipe import Calibration, Export, Sparsify, TensorRTLLM
from compressor.runs.stage import execute
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig
from exporters.checks.structure import check_structure
from exporters.export_stage import export_stage
from exporters.onnx.sparsity import stored_names
from exporters.registry import exporter_of
from exporters.tensorrt_llm.reader import TrtLlmReader
from exporters.verification.record import read_verification
from exporters.verification.verify import verify_directory
from tests.corruptions.faults import chosen
from tests.corruptions.formats import array_of, change_graph, change_tensors, initialiser, set_array
from tests.records import record_again
from tests.unit.exporters.conftest import OPTIONS, Exports, artifact_of, context, export, set_fields
from tests.unit.exporters.tensorrt_llm import stand_in_builder


class Sparse(Exports):
    """A sparse student and its exports, made once."""

    def student(self, *, tied: bool = True) -> Path:
        dense = artifact_of(super().student(tied=tied))
        calibration = Calibration(data=str(self.text), size=4, seq_len=64)
        config = SparsifyStageConfig(sparsify=Sparsify(pattern="2:4"), calibration=calibration)
        return execute(SPARSIFY, config, dense, self.root / "sparse", context()).artifact.path


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory, make_text: Callable[..., Path]) -> Sparse:
    return Sparse(tmp_path_factory.mktemp("sparse"), make_text(num_words=300, name="calibration.txt"))


TENSORRT_LLM: tuple[str, ...] = ("tensorrt-llm", "tensorrt-llm-fp16", "tensorrt-llm-fp8")


@pytest.mark.parametrize("name", ["huggingface", "huggingface-fp8", "onnx", "onnx-int4", *TENSORRT_LLM])
def test_every_format_keeps_the_pattern(sparse: Sparse, name: str) -> None:
    made = sparse.make(name)
    expected = {"pattern": "2:4", "num_tensors": 21}
    assert read_verification(made).checks["sparsity"] == expected
    assert verify_directory(made).checked[0].found["sparsity"] == expected


def test_a_half_precision_graph_keeps_the_pattern(sparse: Sparse, tmp_path: Path) -> None:
    """Built and checked without being run, which not every CPU can."""
    exporter_of("onnx-fp16").write(sparse.student(), tmp_path, OPTIONS)
    carry_sparsity(sparse.student(), tmp_path)
    assert exporter_of("onnx-fp16").sparsity(tmp_path)["sparsity"]["num_tensors"] == 21


def test_fp8_scales_are_those_of_the_masked_weights(sparse: Sparse) -> None:
    quantised = sparse.quantised(tied=True).path
    stored, amax = load_file(quantised / WEIGHTS_FILE), read_amax(quantised)
    for module in ("model.layers.0.mlp.up_proj", "model.layers.2.self_attn.q_proj"):
        weight = stored[f"{module}.weight"].float()
        assert (weight == 0).float().mean() >= 0.5
        assert amax[f"{module}.weight_amax"] == weight.abs().max()


@chosen
def plant(tensors: dict[str, torch.Tensor], name: str) -> None:
    view = tensors[name].view(torch.uint8) if tensors[name].element_size() == 1 else tensors[name]
    zero = (view[3, 8:12] == 0).nonzero()[0, 0]
    view[3, 8 + zero] = 1


@pytest.mark.parametrize("name", ["huggingface", "huggingface-fp8", *TENSORRT_LLM])
def test_a_third_nonzero_in_a_checkpoint_is_caught(sparse: Sparse, tmp_path: Path, name: str) -> None:
    made = sparse.copy(name, tmp_path / "made")
    if name in TENSORRT_LLM:
        file = made / "checkpoint" / "rank0.safetensors"
        change_tensors(file, plant("transformer.layers.1.mlp.proj.weight"))
    else:
        change_tensors(made / WEIGHTS_FILE, plant("model.layers.1.mlp.down_proj.weight"))
    record_again(made)  # its sums would catch it first
    with pytest.raises(VerificationError, match=r"down_proj\.weight\[3, 8:12\]"):
        verify_directory(made)


@pytest.mark.parametrize("name", TENSORRT_LLM)
def test_a_sparse_student_gets_a_sparse_engine_and_a_dense_twin(
    sparse: Sparse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Through the stage, with a stand-in for the builder."""
    stand_in_builder.install(tmp_path / "bin", num_chosen=0)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    stage = context()
    made = execute(export_stage(name), Export(), sparse.source(name), tmp_path / "made", stage).artifact
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


def test_every_ranks_own_matrix_is_checked(sparse: Sparse, tmp_path: Path) -> None:
    """Columns moved from one rank to the next keep the whole sparse, and no rank."""
    settings = TensorRTLLM(tp_size=2)
    made = export(
        "tensorrt-llm", artifact_of(sparse.student()), tmp_path / "made", tensorrt_llm=settings
    ).path
    assert exporter_of("tensorrt-llm").sparsity(made)["sparsity"]["num_tensors"] == 21
    name = "transformer.layers.1.mlp.proj.weight"
    files = [made / "checkpoint" / f"rank{rank}.safetensors" for rank in range(2)]
    whole = torch.cat([load_file(file)[name] for file in files], dim=1)
    for file, part in zip(files, whole.split([98, 94], dim=1), strict=True):
        save_file({**load_file(file), name: part.contiguous()}, file)
    with TrtLlmReader(made / "checkpoint") as reader:
        assert torch.equal(reader.stored("model.layers.1.mlp.down_proj.weight"), whole)
    with pytest.raises((VerificationError, UnsupportedError), match=r"down_proj.*rank 0"):
        exporter_of("tensorrt-llm").sparsity(made)


def test_only_two_of_four_is_offered_to_sparse_tactics(sparse: Sparse, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sparse.student(), tmp_path / "student"))
    set_fields(copy / "sparsity.json", pattern="4:8")
    made = export("tensorrt-llm", artifact_of(copy), tmp_path / "made")
    script = (made.path / "build-engine.sh").read_text()
    assert "--weight_sparsity" not in script
    script = (sparse.make("tensorrt-llm") / "build-engine.sh").read_text()
    assert script.count("docker run") == 2
    assert script.count("--weight_sparsity") == 1


def test_a_dense_checkpoint_of_which_sparsity_is_asked_is_told_so(tiny_checkpoint: Path) -> None:
    """It is whole, so nothing has to be made again."""
    with pytest.raises(VerificationError, match="must be 2:4 sparse is not") as caught:
        check_structure(tiny_checkpoint, exporter_of("huggingface"), Pattern())
    assert "leave --sparsity out" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["onnx", "onnx-int4"])
def test_a_dense_graph_is_caught(sparse: Sparse, exports: Any, tmp_path: Path, name: str) -> None:
    dense = exports.copy(name, tmp_path / "dense")
    shutil.copyfile(sparse.make(name) / "sparsity.json", dense / "sparsity.json")
    with pytest.raises(VerificationError, match="must be 2:4 sparse is not"):
        exporter_of(name).sparsity(dense)


def test_a_third_nonzero_in_an_int4_blob_is_caught(sparse: Sparse, tmp_path: Path) -> None:
    def add(graph: Any) -> None:
        blob = initialiser(graph, "model.layers.1.mlp.down_proj.MatMul.weight_Q4")
        values = array_of(blob)
        # The first four inputs of output 2 share two bytes, low half first; 8 is zero.
        first, second = values[2, 0, 0], values[2, 0, 1]
        halves = [first & 15, first >> 4, second & 15, second >> 4]
        halves[halves.index(8)] = 9
        values[2, 0, 0], values[2, 0, 1] = halves[0] | halves[1] << 4, halves[2] | halves[3] << 4
        assert sum(half != 8 for half in halves) > 2, "rounding left fewer non-zeros here: plant elsewhere"
        set_array(blob, values)

    made = sparse.copy("onnx-int4", tmp_path / "made")
    change_graph(made, add)
    with pytest.raises(VerificationError, match=r"down_proj\.weight\[2, 0:4\]"):
        exporter_of("onnx-int4").sparsity(made)


@pytest.mark.parametrize("name", ["onnx", "onnx-fp16"])
def test_a_third_nonzero_in_a_graphs_matrix_is_caught(sparse: Sparse, tmp_path: Path, name: str) -> None:
    """Stored transposed, inputs in rows; the key's share of joined projections, or its own matrix."""

    def add(graph: Any) -> None:
        # Joined, 64 queries come before the keys.
        places = {"attn.qkv_proj.MatMul.weight": 64, "attn.k_proj.MatMul.weight": 0}
        names = {entry.name for entry in graph.initializer}
        place = next(place for place in places if f"model.layers.1.{place}" in names)
        matrix, output = initialiser(graph, f"model.layers.1.{place}"), places[place] + 3
        values = array_of(matrix)
        values[8 + int((values[8:12, output] == 0).argmax()), output] = 1
        set_array(matrix, values)

    exporter_of(name).write(sparse.student(), tmp_path, OPTIONS)
    carry_sparsity(sparse.student(), tmp_path)
    change_graph(tmp_path, add)
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
