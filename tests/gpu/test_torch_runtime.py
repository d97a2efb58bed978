"""CUDA graphs, FP8 and 2:4 products on a real GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.machine.machine_rates import measure_rates
from bench.runtimes.static_decoder import StaticDecoder
from bench.runtimes.torch_linear import Fp8Linear, convert_linears_, require_support, sparsify_2_of_4
from compressor.core.errors import UnsupportedError
from tests.tiny_models import make_model
from tests.unit.bench.runtimes.test_torch_eager import decodes_as_transformers_does


def need(precision: str) -> None:
    try:
        require_support(precision, "cuda")
    except UnsupportedError as error:
        pytest.skip(str(error))


def test_a_replayed_graph_writes_what_transformers_writes() -> None:
    decodes_as_transformers_does(make_model(hidden_size=128).to("cuda"))


def test_fp8_products_are_close_to_float64() -> None:
    need("fp8")
    linear = nn.Linear(256, 128, bias=False, device="cuda", dtype=torch.bfloat16)
    states = torch.randn(32, 256, device="cuda", dtype=torch.bfloat16)
    expected = states.double() @ linear.weight.double().t()
    error = (Fp8Linear(linear)(states).double() - expected).norm() / expected.norm()
    assert error < 0.05


def test_2_of_4_products_are_those_of_the_thinned_matrix() -> None:
    need("bf16+2:4")
    weight = sparsify_2_of_4(torch.randn(256, 256, device="cuda", dtype=torch.bfloat16))
    states = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    found = nn.functional.linear(states, torch.sparse.to_sparse_semi_structured(weight))
    torch.testing.assert_close(found, states @ weight.t(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("precision", ["fp8", "bf16+2:4"])
def test_a_converted_model_decodes_from_a_graph(precision: str) -> None:
    need(precision)
    model = make_model(hidden_size=256, head_dim=64, intermediate_size=512).to("cuda", torch.bfloat16)
    assert convert_linears_(model, precision) == 3 * 7
    decoder = StaticDecoder(model, batch_size=2, max_length=16)
    prompts = torch.randint(0, 300, (2, 8), device="cuda")
    first, again = (
        torch.cat([decoder.prefill(prompts).clone(), *(decoder.step().clone() for _ in range(7))])
        for _ in range(2)
    )
    assert torch.equal(first, again)


def test_rates_can_be_measured() -> None:
    rates = measure_rates(["bf16"], device="cuda")
    assert rates.bandwidth_bytes_per_s > 1e10
    assert rates.matmul_ops_per_s["bf16"] > 1e12
