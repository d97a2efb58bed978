"""What a repair needs, and what it cannot be combined with; no torch."""

from __future__ import annotations

from compressor.core.errors import UnsupportedError, UsageError
from compressor.recipe.compression import FEWEST_REPAIR_SEQUENCES


def require_steps_alone(steps: int, *, has_branches: bool) -> None:
    """Refuse local gradient steps beside low-rank branches, which would be fitted to other weights.

    Raises:
        UnsupportedError: for both.
    """
    if steps and has_branches:
        raise UnsupportedError(
            "local gradient steps cannot train a layer beside its low-rank branch",
            where="--repair-steps",
            expected="0 with --slorb",
            found=steps,
            hint="leave out --repair-steps, or --slorb",
        )


def require_plain_steps(steps: int) -> None:
    """Refuse local gradient steps of a quantised model: what they train would have to be rounded again.

    Raises:
        UnsupportedError: for any.
    """
    if steps:
        raise UnsupportedError(
            "local gradient steps cannot train weights that are rounded to FP8",
            where="--repair-steps",
            expected="0 for a quantised model",
            found=steps,
            hint="leave out --repair-steps, or repair the 16-bit model with it before `quantize`",
        )


def require_sequences(found: int) -> None:
    """Refuse fewer calibration sequences than a repair divides.

    Raises:
        UsageError: with the number that is needed.
    """
    if found < FEWEST_REPAIR_SEQUENCES:
        raise UsageError(
            "too few calibration sequences to repair a model with",
            where="--calib-size",
            expected=f"at least {FEWEST_REPAIR_SEQUENCES}: to fit the repair, to tune it and to check it",
            found=found,
            hint="raise --calib-size, lower --calib-seq-len, give more text with --calib-data, or use "
            "--repair off in a run",
        )
