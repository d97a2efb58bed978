"""Unified FP8 checkpoints of every family, read, against weights multiplied out and inputs rounded here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file

from compressor.models.load import load_model
from compressor.quantization.amax import FP8_DIRECTORY
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.quantization.reader import load_fp8_model
from compressor.recipe.recipe import Calibration
from compressor.runs.stage import execute
from exporters.huggingface import check_fp8_checkpoint
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint
from tests.unit.exporters.conftest import artifact_of, context

FAMILIES = ["llama", "mistral", "phi3", "qwen2", "qwen3"]
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
    num_linears = 3 * {"nemotron": 6, "phi3": 4}.get(family, 7)
    assert check_fp8_checkpoint(unified, made)["num_equal_fp8_weights"] == num_linears

    by_hand = load_model(student, dtype="float32", device="cpu")
    inputs, outputs = _dequantise_by_hand(by_hand, load_file(unified / "model.safetensors"))
    ids = torch.randint(0, VOCAB_SIZE, (2, 60), generator=torch.Generator().manual_seed(0))
    expected = by_hand(ids, use_cache=False).logits
    assert len(inputs) == num_linears
    reader = load_fp8_model(unified, dtype="float32", device="cpu")
    found_inputs, found_outputs = _follow(reader, inputs, outputs)
    assert _largest_error(reader(ids, use_cache=False).logits, expected).max() < 1e-5
    for name in inputs:
        assert _largest_error(found_inputs[name], inputs[name]).max() < 1e-5, name
        # A value on the edge between two codes may be rounded to the other one, in one token of 120.
        errors = _largest_error(found_outputs[name], outputs[name]).flatten()
        assert (errors > 1e-5).sum() <= 1, name


Activations = dict[str, torch.Tensor]


def _dequantise_by_hand(model: Any, stored: dict[str, torch.Tensor]) -> tuple[Activations, Activations]:
    """Multiply a student's weights out, round its inputs; what its linear layers see and say, once run."""
    inputs: Activations = {}
    outputs: Activations = {}
    for name, codes in stored.items():
        if codes.dtype != FP8:
            continue
        module = name.removesuffix(".weight")
        linear = model.get_submodule(module)
        # The weight's scale is the student's maximum over 448; of the file only the side of an edge is
        # believed: a bfloat16 weight often lies exactly between two codes.
        weight_scale = linear.weight.abs().max().double() / 448
        scaled = linear.weight.double() / weight_scale
        sides = [(scaled * factor).float().to(FP8).float() for factor in (1 - 1e-6, 1 + 1e-6)]
        assert ((codes.float() == sides[0]) | (codes.float() == sides[1])).all(), name
        linear.weight.data = (codes.double() * weight_scale).float()

        def round_input(
            _module: Any, args: Any, name: str = module, s: torch.Tensor = stored[f"{module}.input_scale"]
        ) -> Any:
            inputs[name] = args[0]
            codes = (args[0].double() / s.double()).clamp(-448, 448).float().to(FP8)
            return ((codes.double() * s.double()).float(),)

        def keep_output(_module: Any, _args: Any, output: torch.Tensor, name: str = module) -> None:
            outputs[name] = output

        linear.register_forward_pre_hook(round_input)
        linear.register_forward_hook(keep_output)
    return inputs, outputs


def _follow(model: Any, inputs: Activations, outputs: Activations) -> tuple[Activations, Activations]:
    """Let each linear layer start from the other model's input and be followed by the other's output.

    Else one value that is rounded to the other code changes every value after it by whole codes, and two
    right models drift apart. What the layers themselves were given and answered is returned, once run.
    """
    found_inputs: Activations = {}
    found_outputs: Activations = {}
    for name in inputs:

        def give_input(_module: Any, args: Any, name: str = name) -> Any:
            found_inputs[name] = args[0]
            return (inputs[name],)

        def give_output(_module: Any, _args: Any, output: torch.Tensor, name: str = name) -> torch.Tensor:
            found_outputs[name] = output
            return outputs[name]

        model.get_submodule(name).register_forward_pre_hook(give_input)
        model.get_submodule(name).register_forward_hook(give_output)
    return found_inputs, found_outputs


def _largest_error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """By token, (batch, position): the largest difference, in units of the largest expected value."""
    return (found - expected).abs().amax(-1) / expected.abs().max()
