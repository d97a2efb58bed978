"""An executed standard graph against the student it holds: logits, perplexity, cache and batches."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch.nn import functional

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.quantization.e4m3 import from_e4m3, to_e4m3
from compressor.quantization.reader import load_fp8_model
from exporters.checks.requantised import weight_scales
from exporters.onnx_standard.execute import StandardGraph
from exporters.onnx_standard.tensors import unified_of
from exporters.verification.comparison import LogitComparison, combine, compare_logits, rounded
from exporters.verification.logits import (
    Logits,
    VerifyOptions,
    compare_models,
    student_model,
    torch_logits,
)
from exporters.verification.prompts import Prompt

# Of a graph that computes in float32.
MAX_KL, MIN_TOP1 = 1e-3, 0.99
# How much further from the reader than the reader in float64 a graph may be.
MAX_SHARE_OF_FLOOR = 4.0
_STEPS = (24, 1, 1, 7, 1)
_LAST = 4  # tokens of a batch that are computed from the cache


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The graph's logits against those of the 16-bit student, and the figures that passed."""

    logits: dict[str, LogitComparison]
    checks: dict[str, JsonValue]


def compare_graph(
    directory: Path, student: Path, prompts: list[Prompt], options: VerifyOptions, *, precision: str
) -> Agreement:
    """Run the prompts through the graph as it is stored, and widened to float32.

    In 16 bits, how much is rounded is the runtime's affair and the model's: these logits are compared with
    the 16-bit student's and reported. Widened, the graph is held to the student whose numbers it stores. In
    FP8 that is done twice: without the rounding of activations, to the student that carries the FP8 weights,
    and with it to the FP8 checkpoint in the dequantising reader. One model is in memory at a time.

    Raises:
        VerificationError: saying what differs.
        NotExecutableError: when this CPU lacks a kernel.
    """
    dims = dims_of_config(read_config(student))
    texts = {prompt.token_ids for prompt in prompts if prompt.kind == "text"}
    model = student_model(student, options)
    graph = StandardGraph(directory, dims)
    scored, original = Scored(graph.logits, texts), Scored(torch_logits(model), texts)
    logits = compare_models(original, scored, prompts, options.console)
    perplexities = {"graph": scored.perplexity(), "student": original.perplexity()}
    checks: dict[str, JsonValue] = {}
    exact = logits["all"]
    if precision == "fp8":
        _carry_fp8_(model, weight_scales(student))
    if precision != "bf16":  # which is always widened
        graph = StandardGraph(directory, dims, widened=True, unrounded=precision == "fp8")
        exact = compare_models(torch_logits(model), graph.logits, prompts, options.console)["all"]
    require_equal(exact, what="computes something else than the student it holds")
    checks["in_float32"] = _figures(exact)
    checks |= _other_ways(graph, prompts)
    if precision == "fp8":
        del model, original, graph
        figures, perplexities["fp8_reader"] = _against_reader(directory, student, prompts, options)
        checks |= figures
    checks["perplexity_of_prompts"] = {name: value and rounded(value) for name, value in perplexities.items()}
    return Agreement(logits=logits, checks=checks)


def _carry_fp8_(model: Any, scales: Mapping[str, torch.Tensor]) -> None:
    """Let a student compute with its own weights rounded to FP8."""
    for name, scale in scales.items():
        weight = model.get_submodule(name).weight
        weight.data = from_e4m3(to_e4m3(weight.data, scale), scale)


def _against_reader(
    directory: Path, student: Path, prompts: list[Prompt], options: VerifyOptions
) -> tuple[dict[str, JsonValue], float | None]:
    """The FP8 graph against the dequantising reader, and that one's perplexity.

    An activation between two FP8 numbers becomes one or the other by the least difference before it. A model
    may make much of that: where the graph is further off than rounding should be, the reader itself in
    float64 says how far two exact programs are from each other.
    """
    dims, unified = dims_of_config(read_config(student)), unified_of(student)
    texts = {prompt.token_ids for prompt in prompts if prompt.kind == "text"}

    def reader(dtype: str) -> Logits:
        return torch_logits(load_fp8_model(unified, dtype=dtype, device=options.device))

    logits = Scored(reader("float32"), texts)
    stored, widened = (StandardGraph(directory, dims, widened=wide) for wide in (False, True))
    in_16_bits = compare_models(logits, stored.logits, prompts, options.console)["all"]
    perplexity = logits.perplexity()
    exact = compare_models(logits, widened.logits, prompts, options.console)["all"]
    checks: dict[str, JsonValue] = {
        "against_fp8_reader": {"in_16_bits": _figures(in_16_bits), "in_float32": _figures(exact)}
    }
    max_kl, min_top1 = MAX_KL, MIN_TOP1
    if exact.kl > max_kl or exact.top1_agreement < min_top1:
        floor = compare_models(logits, reader("float64"), prompts, options.console)["all"]
        checks["fp8_reader_in_float64"] = _figures(floor)
        max_kl = max(max_kl, MAX_SHARE_OF_FLOOR * floor.kl)
        min_top1 = min(min_top1, 1 - MAX_SHARE_OF_FLOOR * (1 - floor.top1_agreement))
    require_equal(
        exact, what="computes something else than its FP8 checkpoint", max_kl=max_kl, min_top1=min_top1
    )
    return checks, perplexity


def require_equal(
    compared: LogitComparison, *, what: str, max_kl: float = MAX_KL, min_top1: float = MIN_TOP1
) -> None:
    """Refuse (VerificationError) logits whose difference is more than rounding."""
    if compared.kl > max_kl or compared.top1_agreement < min_top1:
        raise VerificationError(
            f"the graph {what}",
            where="logits",
            expected=f"a KL of at most {max_kl:.3g}, the same token at {min_top1:.0%} of positions",
            found=f"a KL of {compared.kl:.3g}, the same token at {compared.top1_agreement:.2%}",
        )


class Scored:
    """A model as a function from token ids to logits that keeps the likelihood of the texts it is given."""

    def __init__(self, logits: Logits, texts: Collection[tuple[int, ...]]) -> None:
        self._logits, self._texts = logits, texts
        self._sum, self._num_tokens = 0.0, 0

    def __call__(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Logits of every position, `[num_positions, vocab_size]`."""
        logits = self._logits(token_ids)
        if tuple(token_ids) in self._texts:
            targets = torch.tensor(token_ids[1:])
            self._sum += functional.cross_entropy(logits[:-1].double(), targets, reduction="sum").item()
            self._num_tokens += len(targets)
        return logits

    def perplexity(self) -> float | None:
        """Exp of the mean negative log-likelihood of the texts' tokens; None without a text."""
        return math.exp(self._sum / self._num_tokens) if self._num_tokens else None


def _other_ways(graph: StandardGraph, prompts: list[Prompt]) -> dict[str, JsonValue]:
    """The same logits from the cache, in several steps, and for a batch of sequences of several lengths."""
    whole = prompts[0].token_ids
    at_once = graph.logits(whole)
    steps = _steps(len(whole))
    stepped = compare_logits(at_once, graph.logits_in_steps(whole, steps))
    require_equal(stepped, what="computes something else from its KV cache")
    rows = [prompts[1].token_ids[: len(whole) // 2], whole, prompts[-1].token_ids[: 2 * _LAST]]
    found = graph.logits_of_batch(rows, last=_LAST)
    alone = [at_once if row is whole else graph.logits(row) for row in rows]
    batched = combine(compare_logits(one, other) for one, other in zip(alone, found, strict=True))
    require_equal(batched, what="computes something else for a batch of padded sequences")
    return {
        "in_steps": {"num_steps": len(steps), **_figures(stepped)},
        "in_a_batch": {"batch_size": len(rows), **_figures(batched)},
    }


def _steps(length: int) -> list[int]:
    """Sizes of steps that make up a length: several tokens first, single ones, and the rest."""
    sizes: list[int] = []
    for size in (*_STEPS, length):
        sizes.append(min(size, length - sum(sizes)))
    return [size for size in sizes if size > 0]


def _figures(compared: LogitComparison) -> dict[str, JsonValue]:
    """What is alike on every machine; single logits jump where an activation rounds to another FP8 number."""
    return {
        "num_positions": compared.num_positions,
        "kl": rounded(compared.kl),
        "top1_agreement": rounded(compared.top1_agreement),
    }
