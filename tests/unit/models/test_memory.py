"""What cannot be in memory is refused before work; what can, or stays mapped from its file, is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.choices.formats import FORMATS
from compressor.cli.main import invoke
from compressor.core import hardware
from compressor.core.console import Console
from compressor.core.errors import ResourceError
from compressor.distillation.generate_stage import GENERATE
from compressor.distillation.logits_stage import LOGITS
from compressor.evaluation.evaluate_stage import EVALUATE, EvaluateStageConfig
from compressor.models.load import load_model
from compressor.models.memory import memory_of_weights, require_model_memory
from compressor.pruning.prune_stage import PRUNE, PruneStageConfig
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Calibration, Distill, Export, Generate, Prune, Quantize
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import PARTIAL_SUFFIX, Stage, StageContext, execute
from exporters.export_stage import export_stage
from tests.tiny_models import MODEL_TYPES, make_model, save_checkpoint

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def set_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(hardware, "usable_memory_bytes", lambda: num_bytes)


def num_weights(directory: Path) -> int:
    """As plain transformers holds them: a tied head once."""
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_that_are_converted_or_go_to_a_gpu_count(
    model_type: str, tied: bool, tmp_path: Path
) -> None:
    model = make_model(model_type, tie_word_embeddings=tied).to(torch.bfloat16)
    directory = save_checkpoint(tmp_path / "model", model)
    expected = num_weights(directory)
    for dtype, size in BYTES.items():
        mapped = dtype == "bfloat16"
        assert memory_of_weights(directory, dtype=dtype, device="cuda") == size * expected
        assert memory_of_weights(directory, dtype=dtype, device="cpu") == (0 if mapped else size * expected)


def test_a_byte_less_than_the_weights_is_too_little(
    any_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 2 * num_weights(any_checkpoint)
    set_memory(monkeypatch, needed)
    load_model(any_checkpoint, dtype="bfloat16", device="cpu")
    set_memory(monkeypatch, needed - 1)
    with pytest.raises(ResourceError) as caught:
        load_model(any_checkpoint, dtype="bfloat16", device="cpu")
    assert caught.value.exit_code == 5
    assert f"{needed:,} bytes" in str(caught.value.expected)
    assert f"{needed - 1:,} bytes" in str(caught.value.found)
    load_model(any_checkpoint, dtype="float32", device="cpu")  # stays mapped


def test_models_that_are_not_loaded_together_count_alone(
    any_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, 2 * num_weights(any_checkpoint))
    require_model_memory(*[(any_checkpoint, "bfloat16")] * 3, device="cpu")


def test_gradients_of_every_weight_need_as_much_again(
    tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_checkpoint(tmp_path / "source", make_model().to(torch.bfloat16))
    source = ModelArtifact(path=path, stage="source", fingerprint="f", lineage=("source",), num_parameters=1)
    context = StageContext(console=Console(), seed=0, device="cpu", dtype="bfloat16")
    calibration = Calibration(data=str(tiny_text), size=1, seq_len=16)
    shape = {"intermediate_size": 64}
    set_memory(monkeypatch, (4 + 4) * num_weights(path) - 1)
    for importance, refused in (("activation", False), ("taylor", True)):
        config = PruneStageConfig(shape=shape, prune=Prune(importance=importance), calibration=calibration)
        if not refused:
            PRUNE.require_memory(config, source, context)
            continue
        with pytest.raises(ResourceError, match="weights and gradients"):
            PRUNE.require_memory(config, source, context)
    set_memory(monkeypatch, (4 + 4) * num_weights(path))
    PRUNE.require_memory(config, source, context)


STAGES = ("prune", "quantize", "evaluate", "generate", "logits")


def stage_of(name: str, text: Path) -> tuple[Stage[Any], Any]:
    if name in FORMATS:
        return export_stage(name), Export()  # type: ignore[arg-type] - a name of the table
    data, calibration = str(text), Calibration(data=str(text), size=2, seq_len=16)
    shape = {"num_hidden_layers": 2}
    stages: dict[str, tuple[Stage[Any], Any]] = {
        "prune": (PRUNE, PruneStageConfig(shape=shape, prune=Prune(), calibration=calibration)),
        "quantize": (QUANTIZE, QuantizeStageConfig(quantize=Quantize(fp8=True), calibration=calibration)),
        "evaluate": (EVALUATE, EvaluateStageConfig(data=data, window=16, size=2)),
        "generate": (GENERATE, Generate(tokens=8, max_new_tokens=8)),
        "logits": (LOGITS, Distill(data=data, context_length=16)),
    }
    return stages[name]


# Formats that copy, or compare tensor by tensor, never hold the model.
STREAMED = {"huggingface", "onnx-fp16", "tensorrt-edge-llm", "tensorrt-edge-llm-fp8"}


@pytest.mark.parametrize("name", [*STAGES, *sorted(set(FORMATS) - STREAMED)])
def test_a_stage_that_holds_the_model_is_refused_before_work(
    name: str, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_checkpoint(tmp_path / "source", make_model().to(torch.bfloat16))
    source = ModelArtifact(path=path, stage="source", fingerprint="f", lineage=("source",), num_parameters=1)
    work: list[str] = []
    context = StageContext(
        console=Console(),
        seed=0,
        device="cpu",
        dtype="float16",
        teacher=source,
        others={"model": source},
        before=lambda: work.append("begun"),
    )
    stage, config = stage_of(name, tiny_text)
    set_memory(monkeypatch, 1000)
    with pytest.raises(ResourceError, match="not enough memory for the weights"):
        execute(stage, config, source, tmp_path / "out", context)
    assert work == []
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / f"out{PARTIAL_SUFFIX}").exists()


def test_a_stage_that_reads_matrix_by_matrix_is_not_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, 1000)
    options = ["--shape", "num_hidden_layers=2", "--importance", "weight-magnitude"]
    assert invoke(["prune", str(tiny_checkpoint), *options, "-o", str(tmp_path / "out")]) == 0
