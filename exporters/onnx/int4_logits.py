"""An int4 graph's logits: equal to those of the student carrying its weights, and near the student's own.

The first is exact and catches every wrong weight, place or connection. The second is a floor: by how much
int4 may differ is the model's affair, but layers in the wrong order must never count as quantisation. The
student itself says how far that is: its logits with its decoder layers in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn

from compressor.core.errors import VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from exporters.onnx.int4 import check_int4
from exporters.onnx.runtime import OnnxModel
from exporters.verification.comparison import LogitComparison, rounded
from exporters.verification.logits import VerifyOptions, compare_models, torch_logits
from exporters.verification.prompts import Prompt
from exporters.verification.tolerance import TOLERANCES, check_tolerance

# Of the divergence that reversed layers cause; where those hardly change anything, their order says nothing.
MAX_SHARE_OF_REVERSED, ALWAYS_ALLOWED_NATS = 0.5, 0.1


def check_against_carrying_student_(
    model: Any,
    directory: Path,
    student: Path,
    prompts: list[Prompt],
    options: VerifyOptions,
    *,
    compared: LogitComparison,
) -> dict[str, JsonValue]:
    """Check weights step by step, then the graph's logits against the student that carries them.

    `model` is the student in float32; it carries the graph's weights afterwards. `compared` is the graph as
    it runs against the student itself.
    """
    dims = dims_of_config(read_config(student))
    reversed_kl = reversed_divergence(model, prompts, options)
    check_floor(compared, reversed_kl)
    parameters, head = dict(model.named_parameters()), f"{dims.family.lm_head}.weight"

    def carry_(name: str, weight: torch.Tensor) -> None:
        """Let the student compute with a weight, its head untied where that gets one of its own."""
        if name == head:
            output = model.get_output_embeddings()
            own = weight.to(output.weight.device, copy=True)
            output.weight = torch.nn.Parameter(own, requires_grad=False)
        else:
            parameters[name].data.copy_(weight)

    num_quantised = check_int4(directory, student, dims, keep=carry_)
    graph = OnnxModel(directory, dims, exact_activations=True)
    exact = compare_models(torch_logits(model), graph.logits, prompts, options.console)["all"]
    tolerance = TOLERANCES["fp32"]
    assert tolerance is not None
    check_tolerance(exact.figures(), tolerance, where="the student carrying the graph's int4 weights")
    return {
        "num_int4_weights_within_half_a_step": num_quantised,
        "max_relative_to_student_carrying_them": rounded(exact.max_relative),
        "kl_of_student_with_reversed_layers": reversed_kl and rounded(reversed_kl),
    }


def reversed_divergence(model: Any, prompts: list[Prompt], options: VerifyOptions) -> float | None:
    """KL from the student to itself with its layers reversed, in nats; None of a single layer."""
    if len(ModelAdapter(model).layers) < 2:  # noqa: PLR2004 - one layer has one order
        return None
    logits = torch_logits(model)

    def of_reversed(token_ids: Sequence[int]) -> torch.Tensor:
        with _layers_reversed(model):
            return logits(token_ids)

    return compare_models(logits, of_reversed, prompts, options.console)["all"].kl


@contextmanager
def _layers_reversed(model: Any) -> Iterator[None]:
    parent, _, leaf = ModelAdapter(model).family.layers.rpartition(".")
    body = model.get_submodule(parent)
    layers = getattr(body, leaf)
    setattr(body, leaf, nn.ModuleList(reversed(list(layers))))
    try:
        yield
    finally:
        setattr(body, leaf, layers)


def check_floor(compared: LogitComparison, reversed_kl: float | None) -> None:
    """Refuse a graph that is as far from the student as its layers in the wrong order."""
    if reversed_kl is None:
        return
    largest = max(MAX_SHARE_OF_REVERSED * reversed_kl, ALWAYS_ALLOWED_NATS)
    if compared.kl > largest:
        raise VerificationError(
            "the int4 graph agrees with the student too little to be its quantisation",
            where="onnx-int4",
            expected=f"a KL of at most {largest:.3g} nats, half of that of reversed layers",
            found=f"{compared.kl:.3g} nats",
            hint="export again; if it stays so, int4 destroys this model",
        )
