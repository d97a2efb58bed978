"""Unified FP8 checkpoints of every family, read, against weights multiplied out and inputs rounded here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file

from compressor.models.load import load_model
from compressor.quantization.amax import FP8_DIRECTORY
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.quantization.reader import load_fp8_model
from compressor.recipe import Calibration
from compressor.stage import execute
from exporters.huggingface import check_fp8_checkpoint
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint
from tests.unit.exporters.conftest import artifact_of, context

FAMILIES = ["mistral", "qwen2", "qwen3"]
if Version(version("nvidia-modelopt")) >= Version("0.47"):
    FAMILIES.append("nemotron")  # older ones refuse it
FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reader_computes_the_dequantised_student(
    tmp_path: Path, make_text: Callable[..., Path], family: str
) -> None:
    model = make_model(family, tie_word_embeddings=False).to(torch.bfloat16)
    student = save_checkpoint(tmp_path / "student", model)
    text = make_text(num_words=200)
    config = QuantizeStageConfig(calibration=Calibration(data=str(text), size=4, seq_len=64))
    made = execute(QUANTIZE, config, artifact_of(student), tmp_path / "quantised", context()).artifact.path
    unified = made / FP8_DIRECTORY
    assert check_fp8_checkpoint(unified, made)["num_equal_fp8_weights"] == 3 * (
        6 if family == "nemotron" else 7
    )

    by_hand, stored = (
        load_model(student, dtype="float32", device="cpu"),
        load_file(unified / "model.safetensors"),
    )
    for name, tensor in stored.items():
        if tensor.dtype != FP8:
            continue
        base = name.removesuffix("weight")
        linear, scale = by_hand.get_submodule(base[:-1]), stored[base + "input_scale"].double()
        largest = linear.weight.abs().max().double()
        # The weight's scale is the student's maximum over 448; nothing of the file is believed.
        rounded = (linear.weight.double() / (largest / 448)).float().to(FP8)
        linear.weight.data = (rounded.double() * (largest / 448)).float()
        linear.register_forward_pre_hook(
            lambda _module, args, s=scale: (
                ((args[0].double() / s).clamp(-448, 448).float().to(FP8).double() * s).float(),
            )
        )
    ids = torch.randint(0, VOCAB_SIZE, (2, 60), generator=torch.Generator().manual_seed(0))
    expected = by_hand(ids, use_cache=False).logits
    found = load_fp8_model(unified, dtype="float32", device="cpu")(ids, use_cache=False).logits
    plain = load_model(student, dtype="float32", device="cpu")(ids, use_cache=False).logits
    # A value on the edge between two codes may be rounded to the other one.
    difference, loss = (found - expected).abs(), (plain - expected).abs()
    assert difference.mean() < 0.02 * loss.mean()
    assert (difference.amax(-1) <= 1e-3 * expected.abs().max()).float().mean() > 0.9
