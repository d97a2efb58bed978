"""The torch runtime on the CPU, against transformers' own generation and a float64 product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.design.grid import Cell
from bench.design.prompts import make_prompts
from bench.design.shape_only import MARK_FILE, is_shape_only, random_model, shape_of, write_shape
from bench.measure.timeline import verify_timeline
from bench.runtimes.base import StaticRuntime
from bench.runtimes.static_decoder import StaticDecoder
from bench.runtimes.torch_linear import Fp8Linear, convert_linears_, require_support, sparsify_2_of_4
from compressor.choices.runtimes import runtime_named
from compressor.core.errors import UnsupportedError, UsageError
from compressor.models.dims import num_parameters
from compressor.models.presets import PRESETS
from tests.tiny_models import make_model, save_checkpoint

TORCH: StaticRuntime = runtime_named("torch").load()
TINY_SHAPE = "smollm2-135m:num_hidden_layers=2+vocab_size=331"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("torch") / "model", make_model())


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron"])
def test_static_decoding_writes_what_transformers_writes(model_type: str) -> None:
    decodes_as_transformers_does(make_model(model_type))


def decodes_as_transformers_does(model: Any) -> None:
    prompts = torch.randint(0, 300, (3, 9), generator=torch.Generator().manual_seed(0)).to(model.device)
    expected = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=12, min_new_tokens=12,
        do_sample=False, eos_token_id=None,
    )[:, 9:]  # fmt: skip
    decoder = StaticDecoder(model, batch_size=3, max_length=21)
    for _ in range(2):  # the second time the cache is not fresh
        tokens = [decoder.prefill(prompts).clone(), *(decoder.step().clone() for _ in range(11))]
        assert torch.equal(torch.cat(tokens, dim=1), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", [Cell(5, 7, 1), Cell(6, 1, 3)])
def test_exactly_the_requested_tokens_are_read_and_written(
    checkpoint: Path, precision: str, cell: Cell
) -> None:
    session = TORCH.load(checkpoint, precision=precision)
    timeline = session.generate(make_prompts((session.vocabulary,), cell=cell, seed=0), osl=cell.osl)
    verify_timeline(timeline, cell)
    assert timeline.num_gpus == (1 if torch.cuda.is_available() else 0)


def test_a_directory_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        TORCH.check(tmp_path, precision="fp32")


@pytest.mark.parametrize(
    ("precision", "device", "reason"),
    [
        ("fp8", "cpu", "8.9"),
        ("bf16+2:4", "cpu", "8.0"),
        ("int4", "cpu", "unknown"),
        ("bf16+3:4", "cpu", "unknown"),
        ("fp8+2:4", "cuda", "no 2:4 kernel"),
    ],
)
def test_what_the_device_cannot_do_is_refused(precision: str, device: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        require_support(precision, device)


def test_fp8_products_are_close_to_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    linear.weight.data = torch.randn(48, 64, generator=generator) * 0.1
    states = torch.randn(2, 5, 64, generator=generator, dtype=torch.bfloat16)
    expected = states.double() @ linear.weight.detach().double().t()
    found = Fp8Linear(linear.to(torch.bfloat16))(states)
    assert found.dtype == torch.bfloat16
    # E4M3 keeps three bits: at most 2^-4 of each factor, averaged over 64 terms.
    error = (found.double() - expected).norm() / expected.norm()
    assert error < 0.05


def test_thinning_keeps_the_two_largest_of_every_four() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.1, -0.2, 0.3]])
    expected = torch.tensor([[0.0, -4.0, 3.0, 0.0, 0.5, 0.0, 0.0, 0.3]])
    assert torch.equal(sparsify_2_of_4(weight), expected)


def test_fp8_replaces_the_decoders_linear_layers_and_leaves_the_head() -> None:
    model = make_model(intermediate_size=192)
    assert convert_linears_(model, "fp8") == 3 * 7
    assert isinstance(model.lm_head, nn.Linear)
    assert convert_linears_(make_model(), "bf16") == 0


def test_a_layer_without_a_kernel_is_refused_and_not_left_as_it_is() -> None:
    with pytest.raises(UnsupportedError, match="divisible by 16"):
        convert_linears_(make_model(intermediate_size=200), "fp8")


@pytest.mark.parametrize("alias", ["llama3.1-8b", "4b-width", "4b-depth", "minitron-4b"])
def test_published_shapes_have_their_published_size(alias: str, tmp_path: Path) -> None:
    artifact = write_shape(shape_of(alias), tmp_path / alias)
    assert artifact.num_parameters == num_parameters(PRESETS[alias].dims)
    with torch.device("meta"):
        from transformers import AutoConfig, AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / alias))
    assert model.num_parameters() == artifact.num_parameters


def test_a_shape_is_named_by_alias_target_or_fields() -> None:
    assert shape_of("llama3.1-8b:4b-width") == PRESETS["4b-width"].dims
    assert shape_of("llama3.1-8b:num_hidden_layers=16").num_hidden_layers == 16
    for wrong in ("llama3.1-8c", "llama3.1-8b:5b", "llama3.1-8b:layers=16", "4b-width:num_hidden_layers=0"):
        with pytest.raises(UsageError):
            shape_of(wrong)


def test_a_shape_runs_with_random_weights_of_its_seed(tmp_path: Path) -> None:
    write_shape(shape_of(TINY_SHAPE), tmp_path, seed=3)
    assert is_shape_only(tmp_path)
    state = torch.random.get_rng_state()
    first, again = (random_model(tmp_path, dtype="float32", device="cpu") for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    session: Any = TORCH.load(tmp_path, precision="bf16")
    verify_timeline(session.generate(np.ones((1, 4), dtype=np.int32), osl=3), Cell(4, 3, 1))
    assert (tmp_path / MARK_FILE).is_file()
