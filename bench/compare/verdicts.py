"""The verdicts of every gate, and which of them ends a command with an error."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["PASS", "NO-BASELINE", "NOISY", "REGRESSION", "INFEASIBLE", "ANOMALOUS", "MISMATCH"]
# PASS: it holds. NO-BASELINE: what it needs was not measured. NOISY: the measurement cannot tell.
# REGRESSION: it does not hold. INFEASIBLE: it could not hold. ANOMALOUS: what was measured cannot be true.
# MISMATCH: the two sides were not measured alike.
SEVERITY: tuple[Verdict, ...] = (
    *("PASS", "NO-BASELINE", "NOISY", "REGRESSION", "INFEASIBLE", "ANOMALOUS", "MISMATCH"),
)
FailOn = Literal["regression", "noisy", "never"]
