"""The result of a run in one table for people: size, quality and speed of the teacher and of the student."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.design.comparisons import parts_of_arm
from bench.report.results import ArmCell, PeakMemory, Results, Summary
from bench.report.tables import wording_of
from compressor.choices.formats import STUDENT_FORMAT
from compressor.core.sizes import shown_size
from compressor.pipeline.summary import PAGE_FILE, RunSummary
from compressor.planning.plan import Plan

HEADER = ("", "before", "after", "change")
_FP8 = f"{STUDENT_FORMAT}-fp8"
Row = tuple[str, str, str, str]


def before_and_after(summary: RunSummary) -> list[Row]:
    """Rows of `HEADER`: before is the teacher, after the student."""
    rows = [*_sizes(summary), *_quality(summary), *_tasks(summary), *_chat(summary)]
    return [*rows, *_speeds(summary.bench), *_memory(summary.bench)] if summary.bench else rows


def page_of(summary: RunSummary) -> Path | None:
    """The run's page, which a browser opens; None where it is not there."""
    page = Path(summary.out_dir) / PAGE_FILE
    return page if page.is_file() else None


def _sizes(summary: RunSummary) -> Iterator[Row]:
    plan = summary.plan
    before, after = plan.teacher.num_parameters, plan.student.num_parameters
    yield "parameters", f"{before:,}", f"{after:,}", _percent(after / before)
    student = summary.exports.get(STUDENT_FORMAT)
    stored = _weights(plan, student.precision if student else "bf16")
    for name, precision in ((STUDENT_FORMAT, stored), (_FP8, "fp8")):
        if name in summary.exports:
            bytes_before, bytes_after = (
                plan.teacher.weight_bytes[stored],
                plan.student.weight_bytes[precision],
            )
            label = f"weights, {stored}" if precision == stored else f"weights, {stored} to {precision}"
            change = _percent(bytes_after / bytes_before)
            yield label, shown_size(bytes_before), shown_size(bytes_after), change


def _weights(plan: Plan, precision: str) -> str:
    """The precision that the plan counts these weights in: all 16-bit ones are alike."""
    return precision if precision in plan.teacher.weight_bytes else "bf16"


def _quality(summary: RunSummary) -> Iterator[Row]:
    models = summary.evaluation.models
    student = [name for name in models if name not in ("teacher", "corrected teacher", "quantized")][-1]
    before = models["teacher"].perplexity
    for name, label in ((student, "perplexity"), ("quantized", "perplexity, fp8")):
        if name in models:
            after = models[name].perplexity
            yield f"{label} (lower is better)", f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}x"


def _tasks(summary: RunSummary) -> Iterator[Row]:
    if summary.tasks is None:
        return
    models = summary.tasks.models
    before = models["teacher"].tasks
    after = next(found.tasks for name, found in models.items() if name not in ("teacher", "quantized"))
    for name, settings in summary.tasks.tasks.items():
        scores = [tasks[name][settings.metric] for tasks in (before, after)]
        points = 100 * (scores[1] - scores[0])
        yield name, f"{scores[0]:.1%}", f"{scores[1]:.1%}", f"{points:+.1f} points"


def _chat(summary: RunSummary) -> Iterator[Row]:
    if summary.chat is None:
        return
    models = summary.chat.models
    before = models["teacher"]
    after = next(found for name, found in models.items() if name not in ("teacher", "quantized"))
    turns = [model.turns.perplexity for model in (before, after)]
    label = "perplexity of the assistant's turns (lower is better)"
    yield label, f"{turns[0]:.3f}", f"{turns[1]:.3f}", f"{turns[1] / turns[0]:.2f}x"
    shares = [model.replies.finished for model in (before, after)]
    points = 100 * (shares[1] - shares[0])
    yield "finished replies", f"{shares[0]:.1%}", f"{shares[1]:.1%}", f"{points:+.1f} points"


def _speeds(bench: Results) -> Iterator[Row]:
    """The first cell of every comparison of teacher and student."""
    for comparison in bench.comparisons:
        (first, before), (second, after) = map(parts_of_arm, (comparison.baseline, comparison.candidate))
        cell = next((cell for cell in comparison.cells if cell.speedup is not None), None)
        if (first, second) != ("teacher", "student") or cell is None or cell.speedup is None:
            continue
        precision = before if before == after else f"{before} to {after}"
        where = f"{cell.isl}/{cell.osl}, {wording_of(bench).size} {cell.batches}"
        medians = (_median(cell.baseline), _median(cell.candidate))
        yield f"output tokens/s, {precision}, {where}", *medians, f"{cell.speedup.ratio:.2f}x"


def _median(arm: ArmCell | None) -> str:
    measured = arm.metrics.get("output_tokens_per_s") if arm else None
    return f"{measured.median:,.1f}" if isinstance(measured, Summary) else "-"


def _memory(bench: Results) -> Iterator[Row]:
    """What loading and running took in every precision that both were measured in."""
    peaks = {
        parts_of_arm(arm.id): arm.peak_memory.device_bytes or arm.peak_memory.peak_bytes
        for arm in bench.arms
        if isinstance(arm.peak_memory, PeakMemory)
    }
    for model, precision in peaks:
        if model == "student" and ("teacher", precision) in peaks:
            before, after = peaks["teacher", precision], peaks["student", precision]
            yield (
                f"memory in use, {precision}",
                shown_size(before),
                shown_size(after),
                _percent(after / before),
            )


def _percent(ratio: float) -> str:
    """`-40%` for a ratio of 0.6."""
    return f"{ratio - 1:+.0%}"
