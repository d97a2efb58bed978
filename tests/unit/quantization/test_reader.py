from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.core.errors import UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.models.load import load_model
from compressor.quantization.amax import FP8_DIRECTORY
from compressor.quantization.fp8 import _fp8_config
from compressor.quantization.reader import SimulatedFp8Linear, load_fp8_model
from tests.tiny_models import VOCAB_SIZE, edit_tensors
from tests.unit.quantization.conftest import Quantiser, student_artifact

MakeFp8 = Callable[..., tuple[Path, Path]]
TOKENS = torch.arange(96)[None] * 37 % VOCAB_SIZE


@pytest.fixture
def make_fp8(tmp_path: Path, quantise: Quantiser) -> MakeFp8:
    def make(*, tied: bool = True, into: str = "quantize", **settings: Any) -> tuple[Path, Path]:
        source = student_artifact(tmp_path / "student", tie_word_embeddings=tied)
        return source.path, quantise(source, tmp_path / into, **settings).artifact.path / FP8_DIRECTORY

    return make


def simulated_by_modelopt(student: Path, fp8: Path, *, fp8_kv_cache: bool) -> Any:
    """ModelOpt's fake-quantised model with the exported scales and weights.

    A 16-bit weight over a 16-bit maximum is often midway between two FP8 values, where the order of
    divisions decides, so the exported weights are taken as they are.
    """
    import modelopt.torch.quantization as mtq

    scales = load_file(fp8 / WEIGHTS_FILE)
    simulated = load_model(student, dtype="float32", device="cpu")
    mtq.quantize(simulated, _fp8_config(mtq), lambda model: model(TOKENS))
    for name, module in simulated.named_modules():
        if name.endswith("input_quantizer") and module.is_enabled:
            linear = name.removesuffix(".input_quantizer")
            module.amax = 448 * scales[f"{linear}.input_scale"]
            stored = scales[f"{linear}.weight"].float() * scales[f"{linear}.weight_scale"]
            simulated.get_submodule(linear).weight.copy_(stored)
            simulated.get_submodule(linear).weight_quantizer.disable()
        for kind in ("k", "v"):
            if name.endswith(f".{kind}_bmm_quantizer"):
                projection = name.replace(f"{kind}_bmm_quantizer", f"{kind}_proj.{kind}_scale")
                if fp8_kv_cache:
                    module.amax = 448 * scales[projection]
                else:
                    module.disable()
    return simulated


@pytest.mark.parametrize("tied", [True, False])
def test_every_linear_layer_equals_modelopts_simulation(make_fp8: MakeFp8, tied: bool) -> None:
    """On equal inputs; through a whole model one last bit can move a value to the next FP8 step."""
    student, fp8 = make_fp8(tied=tied)
    simulated = dict(simulated_by_modelopt(student, fp8, fp8_kv_cache=False).named_modules())
    plain = dict(load_model(student, dtype="float32", device="cpu").named_modules())
    scales, checked = load_file(fp8 / WEIGHTS_FILE), 0
    for name, module in load_fp8_model(fp8, dtype="float32", device="cpu").named_modules():
        if isinstance(module, SimulatedFp8Linear):
            largest = 448 * scales[f"{name}.input_scale"]
            x = torch.randn(1, 64, module.in_features) * largest / 3
            expected = simulated[name](x)
            # Both divide in another order: now and then an input rounds to the other neighbour.
            quantisation_error = (expected - plain[name](x)).abs().mean()
            assert (module(x) - expected).abs().mean() < 0.02 * quantisation_error, name
            checked += 1
    assert checked == 21


@pytest.mark.parametrize("fp8_kv_cache", [True, False])
def test_attention_agrees_with_modelopts_simulation(make_fp8: MakeFp8, fp8_kv_cache: bool) -> None:
    """Of the first layer, whose inputs are equal; keys and values are rounded only when asked."""
    student, fp8 = make_fp8(fp8_kv_cache=fp8_kv_cache)
    models = {
        "modelopt": simulated_by_modelopt(student, fp8, fp8_kv_cache=fp8_kv_cache),
        "ours": load_fp8_model(fp8, dtype="float32", device="cpu"),
        "plain": load_model(student, dtype="float32", device="cpu"),
    }
    outputs = {}
    for name, model in models.items():
        seen: list[torch.Tensor] = []
        layer = model.model.layers[0].self_attn
        layer.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output[0]))
        model(TOKENS, use_cache=False)
        outputs[name] = seen[-1]
    quantisation_error = (outputs["modelopt"] - outputs["plain"]).abs().mean()
    assert (outputs["modelopt"] - outputs["ours"]).abs().mean() < 0.1 * quantisation_error


def test_stock_transformers_would_have_been_silently_wrong(make_fp8: MakeFp8) -> None:
    student, fp8 = make_fp8()
    reference = load_model(student, dtype="float32", device="cpu")(TOKENS).logits
    ours = load_fp8_model(fp8, dtype="float32", device="cpu")
    assert isinstance(ours.model.layers[0].mlp.up_proj, SimulatedFp8Linear)
    assert not isinstance(ours.lm_head, SimulatedFp8Linear)
    assert (ours(TOKENS).logits - reference).abs().mean() < 0.5 * reference.abs().mean()
    weight, stored = ours.model.layers[0].mlp.up_proj.weight, load_file(fp8 / WEIGHTS_FILE)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weight, stored[name].float() * stored[f"{name}_scale"])


def test_an_fp8_kv_cache_changes_the_logits(make_fp8: MakeFp8) -> None:
    made = (make_fp8(into=f"cached-{cached}", fp8_kv_cache=cached)[1] for cached in (True, False))
    models = (load_fp8_model(path, dtype="float32", device="cpu") for path in made)
    with_cache, without = (model(TOKENS).logits for model in models)
    assert 0 < (with_cache - without).abs().mean() < 0.5 * without.abs().mean()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("scale", ["self_attn.o_proj.weight_scale", "mlp.gate_proj.input_scale"])
def test_an_unusable_scale_is_refused_by_name(make_fp8: MakeFp8, scale: str, value: float) -> None:
    _, fp8 = make_fp8()
    name = f"model.layers.1.{scale}"
    edit_tensors(fp8, lambda tensors: tensors.update({name: torch.tensor(value)}))
    with pytest.raises(VerificationError, match=name.replace(".", r"\.")):
        load_fp8_model(fp8, dtype="float32", device="cpu")


def test_a_missing_scale_a_foreign_scale_and_scales_of_one_are_refused(make_fp8: MakeFp8) -> None:
    _, fp8 = make_fp8()
    original = load_file(fp8 / WEIGHTS_FILE)
    name = "model.layers.2.mlp.down_proj.input_scale"
    edit_tensors(fp8, lambda tensors: tensors.pop(name))
    with pytest.raises(
        VerificationError, match=r"lacks a scale[\s\S]*layers\.2\.mlp\.down_proj\.input_scale"
    ):
        load_fp8_model(fp8, dtype="float32", device="cpu")
    save_file({**original, "lm_head.weight_scale": torch.tensor(0.5)}, fp8 / WEIGHTS_FILE)
    with pytest.raises(VerificationError, match=r"lm_head\.weight_scale"):
        load_fp8_model(fp8, dtype="float32", device="cpu")
    ones = {key: torch.ones(()) if key.endswith("weight_scale") else value for key, value in original.items()}
    save_file(ones, fp8 / WEIGHTS_FILE)
    with pytest.raises(VerificationError, match=r"every weight scale is 1\.0"):
        load_fp8_model(fp8, dtype="float32", device="cpu")


def test_a_16_bit_weight_among_fp8_ones_is_refused(make_fp8: MakeFp8) -> None:
    _, fp8 = make_fp8()
    name = "model.layers.0.self_attn.q_proj.weight"
    edit_tensors(fp8, lambda tensors: tensors.update({name: tensors[name].to(torch.bfloat16)}))
    with pytest.raises(VerificationError, match="is not FP8"):
        load_fp8_model(fp8, dtype="float32", device="cpu")


def test_a_16_bit_checkpoint_is_not_read_as_fp8(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="not quantised"):
        load_fp8_model(tiny_checkpoint, dtype="float32", device="cpu")


def test_the_reader_needs_no_modelopt(make_fp8: MakeFp8, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fp8 = make_fp8()
    monkeypatch.setitem(__import__("sys").modules, "modelopt", None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    assert torch.isfinite(load_fp8_model(fp8, dtype="float32", device="cpu")(TOKENS).logits).all()
