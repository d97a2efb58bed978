"""The release gates: a pure function of two tables, the teacher's and the student's.

Where a figure has an interval, it must lie on one side of the limit as a whole: a gate that the interval
contains is NOISY, as the measurement cannot tell. A limit of so many sigma is made of the measured noise
itself, and is none where that is large. Figures that cannot be true fail every gate: a model of constant
output may be small and fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bench.compare.gate import MAX_REACHED
from bench.compare.verdicts import Verdict
from compressor.gates.intervals import difference_reach, mean_reach, standard_error
from compressor.gates.record import Figure, GateReport, GateRow, Kind, Table
from compressor.recipe.gates import Gates, sigmas_of

# Of the teacher's: below it, predictions hardly depend on what was read.
LEAST_INFORMATION = 0.01
# And whatever the teacher's are, which may be broken itself.
LEAST_NATS = 1e-3
# A tolerance that noise would make larger than this is refused: anything would pass.
LARGEST_DERIVED = 0.10
STUDENT = "student"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a gate compares: a metric of the student's table, and which side of the limit is good.

    Attributes:
        share: Whether the figure lies from 0 to 1.
        relative: Whether it is compared with the teacher's, sample by sample.
        unit: How a number of it is written.
    """

    metric: str
    kind: Kind
    is_lower_better: bool
    least: float = 0.0
    share: bool = False
    relative: bool = False
    unit: str = "{:.4g}"


RULES: dict[str, Rule] = {
    "perplexity_ratio": Rule(metric="nll", kind="accuracy", is_lower_better=True, relative=True),
    "perplexity": Rule(metric="perplexity", kind="accuracy", is_lower_better=True, least=1.0),
    "kl": Rule(metric="kl", kind="accuracy", is_lower_better=True, unit="{:.4g} nats"),
    "top1": Rule(metric="top1", kind="accuracy", is_lower_better=False, share=True),
    "formats": Rule(metric="format top1", kind="accuracy", is_lower_better=False, share=True),
    "tasks": Rule(metric="tasks", kind="accuracy", is_lower_better=False),
    "task_ratio": Rule(metric="tasks", kind="accuracy", is_lower_better=False, relative=True),
    "chat_perplexity_ratio": Rule(metric="chat nll", kind="accuracy", is_lower_better=True, relative=True),
    "chat_finished": Rule(metric="chat finished", kind="accuracy", is_lower_better=False, share=True),
    "speedup": Rule(metric="speedup", kind="speed", is_lower_better=False, unit="{:.4g}x"),
    "memory": Rule(metric="memory", kind="memory", is_lower_better=True, unit="{:,.0f} bytes"),
    "size": Rule(metric="size", kind="size", is_lower_better=True, unit="{:,.0f} bytes"),
}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A gate's limit for one subject.

    Attributes:
        value: The limit itself; None until it is made.
        sigmas: Of how many standard errors of the measurement it is made; None where it is given.
        refused: Why the measured noise is too large for it: what lies within says nothing.
    """

    value: float | None = None
    sigmas: float | None = None
    refused: str | None = None


def judge(gates: Gates, teacher: Table, student: Table) -> GateReport:
    """Judge a student by every gate that is set."""
    overall = _overall(teacher, student)
    rows = [row for gate in gates.demanded() for row in _rows(gate, gates, teacher, student)]
    if overall is not None:
        verdict, reason = overall
        rows = [row.model_copy(update={"verdict": verdict, "reason": reason}) for row in rows]
    return GateReport(fail_on=gates.fail_on, rows=tuple(rows))


def _overall(teacher: Table, student: Table) -> tuple[Verdict, str] | None:
    """What speaks against every figure of the student at once."""
    names = sorted({*teacher.conditions, *student.conditions})
    differing = [
        f"{name} was {teacher.conditions.get(name, 'absent')} for the teacher, "
        f"{student.conditions.get(name, 'absent')} for the student"
        for name in names
        if teacher.conditions.get(name) != student.conditions.get(name)
    ]
    if differing:
        return "MISMATCH", "; ".join(differing)
    own = max((found for found in teacher.information.values() if found is not None), default=None)
    if own is None or not student.information or None in student.information.values():
        return (
            "NO-BASELINE",
            "nothing shows that the student's output depends on its input: evaluate it again",
        )
    for subject, found in student.information.items():
        if found is not None and not found > max(LEAST_NATS, LEAST_INFORMATION * own):
            return "ANOMALOUS", (
                f"{subject} predicts the same whatever it reads: its predictions hold {found:.2g} nats of "
                f"information, the teacher's {own:.2g}"
            )
    return None


def _rows(gate: str, gates: Gates, teacher: Table, student: Table) -> Iterator[GateRow]:
    rule = RULES[gate]
    figures = student.figures.get(rule.metric, {})
    limits = _limits(gate, gates, tuple(figures))
    for subject, limit in limits.items():
        figure = figures.get(subject, Figure(value=None, reason="it was not measured"))
        if rule.relative and figure.value is not None:
            compare = _against_score if gate == "task_ratio" else _against_loss
            theirs = teacher.figures.get(rule.metric, {}).get(figure.against, Figure(value=None))
            figure, limit = compare(theirs, figure, limit)  # noqa: PLW2901
        verdict, reason = _verdict(rule, limit, figure)
        yield GateRow(
            gate=gate,
            subject=subject,
            kind=rule.kind,
            verdict=verdict,
            required=_required(rule, limit),
            found=_found(rule, figure),
            reason=reason,
            limit=limit.value,
            value=figure.value,
            low=figure.low,
            high=figure.high,
        )


def _limits(gate: str, gates: Gates, subjects: tuple[str, ...]) -> dict[str, Limit]:
    """The limit of every subject: one for all that were measured, or one for each that is named."""
    wanted = getattr(gates, gate)
    if isinstance(wanted, dict):
        named = {name: [found for found in subjects if _is_of(found, name)] for name in wanted}
        return {
            subject: Limit(value=float(wanted[name]))
            for name, found in named.items()
            for subject in found or [name]
        }
    sigmas = sigmas_of(wanted) if isinstance(wanted, str) else None
    limit = Limit(sigmas=sigmas) if sigmas is not None else Limit(value=float(wanted))
    return dict.fromkeys(subjects or (STUDENT,), limit)


def _is_of(subject: str, name: str) -> bool:
    """Whether a subject is the one that is named, or a quantised model's: `arc_easy (student FP8)`."""
    return subject == name or subject.startswith(f"{name} (")


def _against_score(teacher: Figure, own: Figure, limit: Limit) -> tuple[Figure, Limit]:
    """The ratio of mean scores, its error from the items' differences: s - ratio t has the mean 0."""
    if not teacher.value or own.value is None:
        return Figure(value=None, reason="the teacher scores nothing that a ratio could be taken of"), limit
    ratio, num_items = own.value / teacher.value, len(own.samples)
    if num_items != len(teacher.samples) or num_items < 2:  # noqa: PLR2004
        return Figure(value=None, reason="the teacher was not asked the same items"), limit
    students, teachers = np.asarray(own.samples), np.asarray(teacher.samples)
    if limit.sigmas is not None:
        tolerance = limit.sigmas * standard_error(students - teachers) / teacher.value
        return Figure(value=ratio), _derived(limit, 1 - tolerance, tolerance)
    reach = difference_reach(students - ratio * teachers) / teacher.value
    return Figure(value=ratio, low=max(0.0, ratio - reach), high=ratio + reach), limit


def _derived(limit: Limit, value: float, tolerance: float) -> Limit:
    """A limit that was made of so many sigma, or refused as too wide."""
    refused = (
        f"{limit.sigmas:g} sigma are {tolerance:.1%}, and at most {LARGEST_DERIVED:.0%} are accepted: "
        "measure on more text, or give a number"
    )
    return replace(limit, value=value, refused=refused if tolerance > LARGEST_DERIVED else None)


def _against_loss(teacher: Figure, own: Figure, limit: Limit) -> tuple[Figure, Limit]:
    """The ratio of perplexities, from paired differences of log-likelihoods, and its limit."""
    if teacher.value is None or own.value is None:
        return Figure(value=None, reason="the teacher was not measured on this text"), limit
    ratio = math.exp(own.value - teacher.value)
    if len(own.samples) != len(teacher.samples) or len(own.samples) < 2:  # noqa: PLR2004
        found = Figure(value=ratio)
        if limit.sigmas is not None:
            found = Figure(value=None, reason="one window alone has no noise that a limit could be made of")
        return found, limit
    differences = np.asarray(own.samples) - np.asarray(teacher.samples)
    if limit.sigmas is not None:
        tolerance = math.exp(limit.sigmas * standard_error(differences)) - 1
        return Figure(value=ratio), _derived(limit, 1 + tolerance, tolerance)
    reach = mean_reach(differences)
    return Figure(value=ratio, low=ratio * math.exp(-reach), high=ratio * math.exp(reach)), limit


def _verdict(rule: Rule, limit: Limit, figure: Figure) -> tuple[Verdict, str]:
    value = figure.value
    if value is None or limit.value is None:
        return "NO-BASELINE", figure.reason or "it was not measured"
    if impossible := _impossible(rule, figure):
        return "ANOMALOUS", impossible
    ends = (value if figure.low is None else figure.low, value if figure.high is None else figure.high)
    worse = [_beyond(rule, end, limit.value) for end in ends]
    if all(worse) and figure.best is not None and _beyond(rule, figure.best, limit.value):
        best = rule.unit.format(figure.best)
        return "INFEASIBLE", f"at best {best} could be reached with this student"
    if figure.noise is not None:
        return "NOISY", figure.noise
    if all(worse):
        return "REGRESSION", "the limit is not kept"
    if limit.refused is not None:
        return "NO-BASELINE", limit.refused
    if any(worse):
        return "NOISY", "the interval contains the limit: measure longer, or on more text"
    return "PASS", "the limit is kept"


def _beyond(rule: Rule, value: float, limit: float) -> bool:
    """Whether a value is on the wrong side of the limit."""
    return value > limit if rule.is_lower_better else value < limit


def _impossible(rule: Rule, figure: Figure) -> str | None:
    """Why a figure cannot be one of work that was done, or None."""
    value = figure.value
    assert value is not None
    if not math.isfinite(value) or value < rule.least or (rule.share and value > 1):
        return f"{value:g} is no value that this can have"
    if rule.kind == "speed" and figure.best is not None and value > MAX_REACHED * figure.best:
        return f"that is more than {MAX_REACHED:g} times the best that this machine's rates allow"
    if rule.kind in ("memory", "size") and figure.best is not None and value < figure.best:
        return f"the weights alone are {rule.unit.format(figure.best)}"
    return None


def _required(rule: Rule, limit: Limit) -> str:
    sign = "at most" if rule.is_lower_better else "at least"
    derived = f" ({limit.sigmas:g} sigma)" if limit.sigmas is not None else ""
    if limit.value is None:
        return f"{sign} the measured noise{derived}"
    return f"{sign} {rule.unit.format(limit.value)}{derived}"


def _found(rule: Rule, figure: Figure) -> str:
    if figure.value is None:
        return "not measured"
    text = rule.unit.format(figure.value)
    if figure.low is None or figure.high is None:
        return text
    return f"{text} ({rule.unit.format(figure.low)} to {rule.unit.format(figure.high)})"
