"""A stand-in for the held-out loss of a teacher: one of random weights is worse than its student."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.distillation import validation

LOSS = 4.0


def teach_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every teacher have a low loss on held-out text; the student's is measured."""
    measured = validation.held_out_loss

    def loss(*arguments: Any, of_teacher: bool) -> float:
        return LOSS if of_teacher else measured(*arguments, of_teacher=False)

    monkeypatch.setattr(validation, "held_out_loss", loss)
