"""Which arms are compared with which, so that every gain is credited to what brought it.

Student against teacher in the same precision says what pruning bought; each precision against the first
one what quantization bought; 2:4 against its dense twin what sparsity bought; and the first arm against
the last the total. An arm is called `MODEL-PRECISION`, a sparse one `MODEL-bf16+2:4`.
"""

from __future__ import annotations

from typing import Literal

SPARSITY_MARK = "+"

Baselines = Literal["same-precision", "all"]


def arm_name(model: str, precision: str) -> str:
    """How an arm is called: `student-fp32`."""
    return f"{model}-{precision}"


def parts_of_arm(name: str) -> tuple[str, str]:
    """Model and precision of an arm's name."""
    model, _, precision = name.rpartition("-")
    return model, precision


def split_precision(precision: str) -> tuple[str, str]:
    """`bf16+2:4` as `bf16` and `2:4`; a dense one has an empty second part."""
    dense, _, sparsity = precision.partition(SPARSITY_MARK)
    return dense, sparsity


def fair_comparisons(arms: tuple[str, ...], *, which: Baselines = "all") -> tuple[tuple[str, str], ...]:
    """Pairs (baseline, candidate) of arm names; the first arm is the reference of models and of precisions.

    `same-precision` leaves out everything but models against the first model.
    """
    models = list(dict.fromkeys(parts_of_arm(arm)[0] for arm in arms))
    precisions = list(dict.fromkeys(parts_of_arm(arm)[1] for arm in arms))
    pairs = [
        (arm_name(models[0], precision), arm_name(model, precision))
        for precision in precisions
        for model in models[1:]
    ]
    if which == "all":
        pairs += [
            (arm_name(model, _simpler(precision, precisions)), arm_name(model, precision))
            for model in models
            for precision in precisions[1:]
        ]
        pairs += [
            (arm_name(models[0], precisions[0]), arm_name(model, precision))
            for model in models[1:]
            for precision in precisions[1:]
        ]
    return tuple(pair for pair in dict.fromkeys(pairs) if pair[0] in arms and pair[1] in arms)


def _simpler(precision: str, precisions: list[str]) -> str:
    """The dense twin of a sparse precision where there is one, else the reference."""
    dense, sparsity = split_precision(precision)
    return dense if sparsity and dense in precisions else precisions[0]
