"""What stored teacher logits can be combined with; no torch."""

from __future__ import annotations

from typing import Protocol

from compressor.core.errors import UsageError


class KLSettings(Protocol):
    """What decides which part of the teacher's distribution a KL loss reads."""

    @property
    def kl_weight(self) -> float:
        """Weight of the KL loss; 0 for none."""

    @property
    def temperature(self) -> float:
        """Softmax temperature."""

    @property
    def top_k(self) -> int | None:
        """Tokens that count by themselves; None for all."""

    @property
    def top_k_tail(self) -> str:
        """What becomes of the others."""


def require_stored_temperature(loss: KLSettings) -> None:
    """Refuse a temperature at which stored logits do not give the probability of all other tokens.

    Raises:
        UsageError: for one but 1, unless only the stored tokens count.
    """
    renormalises = loss.top_k is not None and loss.top_k_tail == "drop"
    if loss.kl_weight > 0 and not renormalises and loss.temperature != 1:
        raise UsageError(
            "stored logits give the probability of all tokens that are not stored at temperature 1 only",
            where="distill.teacher_logits",
            expected="distill.temperature 1",
            found=f"{loss.temperature:g}",
            hint="use --temperature 1, or --top-k with --top-k-tail drop, which leaves those tokens out",
        )
