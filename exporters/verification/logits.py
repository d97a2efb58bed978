"""Running the fixed prompts through a student and a candidate, one prompt in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.models.checkpoint import read_config
from compressor.models.config.class_defaults import value_of
from compressor.models.load import load_model
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.recipe import Export
from exporters.verification.comparison import LogitComparison, combine, compare_logits
from exporters.verification.prompts import Prompt, verification_prompts

Logits = Callable[[Sequence[int]], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How models are run for verification, and the recipe's settings of exports."""

    console: Console
    device: str = "cpu"
    trust_remote_code: bool = False
    export: Export = field(default_factory=Export)


def student_prompts(student: Path, options: VerifyOptions) -> list[Prompt]:
    """The fixed prompts in the student's vocabulary."""
    config = read_config(student)
    tokenizer = tokenizer_of(student, trust_remote_code=options.trust_remote_code)
    length = value_of(config, "max_position_embeddings")
    return verification_prompts(tokenizer, vocab_size=config["vocab_size"], max_length=length)


def tokenizer_of(student: Path, *, trust_remote_code: bool) -> Any:
    """The student's tokenizer; None where it has none."""
    try:
        return load_tokenizer(student, trust_remote_code=trust_remote_code)
    except UsageError:
        return None


def student_model(student: Path, options: VerifyOptions) -> Any:
    """The student in float32."""
    return load_model(
        student, dtype="float32", device=options.device, trust_remote_code=options.trust_remote_code
    )


def student_logits(student: Path, options: VerifyOptions) -> Logits:
    """The student in float32 as a function from token ids to logits `[num_positions, vocab_size]`."""
    return torch_logits(student_model(student, options))


def torch_logits(model: Any) -> Logits:
    """A loaded model as a function from token ids to float32 logits on the CPU."""
    device = next(model.parameters()).device

    def logits(token_ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            output = model(torch.tensor([token_ids], device=device), use_cache=False).logits
        result: torch.Tensor = output[0].float().cpu()
        return result

    return logits


def compare_models(
    reference: Logits, candidate: Logits, prompts: list[Prompt], console: Console
) -> dict[str, LogitComparison]:
    """Compare two models at every position of every prompt, finite all.

    Returns `all`, and `text` and `random` where there are such prompts.
    """
    parts: dict[str, list[LogitComparison]] = {"all": []}
    with console.progress("verifying", len(prompts)) as tick:
        for prompt in prompts:
            compared = compare_logits(reference(prompt.token_ids), candidate(prompt.token_ids))
            parts["all"].append(compared)
            parts.setdefault(prompt.kind, []).append(compared)
            tick()
    return {kind: combine(compared) for kind, compared in parts.items()}
