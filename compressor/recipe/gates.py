"""The recipe's section about what a finished student must have reached to be released."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator

from compressor.recipe.forms import written
from compressor.recipe.option import Section, option
from compressor.recipe.outcome import Bytes, Factor

_SIGMA = "sigma"


def sigmas_of(limit: str) -> float | None:
    """The number of standard errors that a limit such as `3sigma` stands for; None of a plain number."""
    return float(limit.removesuffix(_SIGMA)) if limit.endswith(_SIGMA) else None


def _limit(value: object) -> str:
    """`1.2` or `3sigma`, as text; numbers of a recipe are taken as well."""
    text = str(value).strip().lower().replace(" ", "")
    try:
        number = float(text.removesuffix(_SIGMA))
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ValueError(f"{str(value)[:40]!r} is not a limit such as 1.2, or 3sigma for measured noise")
    return text


def _shares(text: str) -> dict[str, float]:
    """`arc_easy=0.5,piqa=0.6` as a mapping."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name.strip() in found:
            raise ValueError(f"{name.strip()} is given twice")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            raise ValueError(f"{part[:40]!r} is not NAME=NUMBER") from None
    return found


def _within_one(shares: dict[str, float]) -> dict[str, float]:
    for name, share in shares.items():
        if not (name and 0 <= share <= 1):
            raise ValueError(f"{name}={share:g} is not a share from 0 to 1")
    return shares


Limit = Annotated[str, BeforeValidator(_limit, json_schema_input_type=str | float)]
Shares = Annotated[dict[str, float], written(_shares), AfterValidator(_within_one)]


class Gates(Section):
    """What a finished student is judged by; a gate that is not set does not count."""

    heading: ClassVar[str] = "Gates, judged at the end of a run"
    prefix: ClassVar[str] = "gate"

    perplexity_ratio: Limit | None = option(
        None,
        "Largest perplexity of the student over the teacher's, such as 1.2; or 3sigma, for as much above 1 "
        "as three standard errors of the measured difference are.",
        metavar="LIMIT",
    )
    perplexity: float | None = option(None, "Largest perplexity of the student.", metavar="NUMBER", gt=1)
    kl: float | None = option(
        None,
        "Largest mean KL divergence from the teacher's predictions on the evaluation text, in nats.",
        metavar="NATS",
        gt=0,
    )
    top1: float | None = option(
        None,
        "Smallest share of positions of the evaluation text (0 to 1) at which student and teacher predict "
        "the same token.",
        metavar="SHARE",
        ge=0,
        le=1,
    )
    formats: Shares = option(
        {},
        "Smallest share of positions at which an export predicts the student's token, by format, such as "
        "onnx-int4=0.9.",
        metavar="NAME=SHARE,...",
    )
    tasks: Shares = option(
        {},
        "Smallest score of the student in tasks of --eval-tasks (0 to 1), by task, such as arc_easy=0.5.",
        metavar="NAME=SCORE,...",
    )
    task_ratio: Limit | None = option(
        None,
        "Smallest share of the teacher's score that the student must keep in every task of --eval-tasks, "
        "such as 0.95; or 3sigma, for as much below 1 as three standard errors of the difference are.",
        metavar="LIMIT",
    )
    chat_perplexity_ratio: Limit | None = option(
        None,
        "Largest perplexity of the student over the teacher's in the assistant's turns of --eval-chat-data, "
        "such as 1.2; or 3sigma, for as much above 1 as three standard errors of the difference are.",
        metavar="LIMIT",
    )
    chat_finished: float | None = option(
        None,
        "Smallest share of the student's replies to --eval-chat-data (0 to 1) that say something, do not end "
        "in a loop, and end by themselves.",
        metavar="SHARE",
        ge=0,
        le=1,
    )
    speedup: Factor | None = option(
        None,
        "Smallest output throughput of the student over the teacher's, in every precision, length and batch "
        "size that the benchmark measures, such as 1.3x.",
        metavar="FACTOR",
        gt=0,
    )
    memory: Bytes | None = option(
        None,
        "Most memory that the student may need in the benchmark, in every precision, such as 6GiB.",
        metavar="SIZE",
        gt=0,
    )
    size: Bytes | None = option(
        None,
        "Most bytes on disk of the student's checkpoint, with --fp8 of the FP8 one, such as 3GiB.",
        metavar="SIZE",
        gt=0,
    )
    fail_on: Literal["regression", "noisy", "never"] = option(
        "regression",
        "Verdicts that end with exit code 6 (accuracy) or 7 (speed, memory, size). regression: every one but "
        "PASS and NOISY; noisy: every one but PASS; never: none.",
    )

    def demanded(self) -> tuple[str, ...]:
        """The names of the gates that are set."""
        names = [name for name in type(self).model_fields if name != "fail_on"]
        return tuple(name for name in names if getattr(self, name) not in (None, {}))
