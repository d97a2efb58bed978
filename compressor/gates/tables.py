"""The two tables that gates are judged by, from what a run's stages recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.report.results import Absent, CellResult, Results, Roofline
from compressor.evaluation.chat_figures import nll_samples
from compressor.evaluation.chat_record import ChatRecord
from compressor.evaluation.record import EvaluationRecord, MeasuredModel
from compressor.evaluation.task_record import TasksRecord
from compressor.gates.intervals import mean_interval, score_interval, share_interval
from compressor.gates.judge import STUDENT
from compressor.gates.record import Figure, Table
from exporters.verification.record import ExportRecord

TEACHER = "teacher"
INDICATIVE = "the benchmark is indicative: it was measured with too few series (--bench-series)"


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Scores in tasks, and those of every item: model -> task -> metric -> scores."""

    record: TasksRecord
    items: Mapping[str, Mapping[str, Sequence[float]]]


def teacher_table(
    evaluation: EvaluationRecord, tasks: TaskScores | None = None, chat: ChatRecord | None = None
) -> Table:
    """What the teacher reached on the evaluation text, in tasks, and in chat."""
    model = evaluation.models[TEACHER]
    return Table(
        conditions=_conditions(evaluation, model),
        information={TEACHER: model.information},
        figures={
            "nll": {TEACHER: _nll(model)},
            "tasks": _tasks(tasks, {TEACHER: TEACHER}) if tasks else {},
            "chat nll": _chat_nll(chat, {TEACHER: TEACHER}) if chat else {},
        },
    )


def student_table(
    evaluation: EvaluationRecord,
    students: Mapping[str, str],
    *,
    exports: Mapping[str, ExportRecord],
    bench: Results | None,
    size: Figure,
    tasks: TaskScores | None = None,
    chat: ChatRecord | None = None,
) -> Table:
    """What the student reached.

    Args:
        evaluation: Of all models of the run.
        students: What to call each of them that is released -> its name in the evaluation.
        exports: Exports compared with the student, by format.
        bench: The paired benchmark against the teacher.
        size: Bytes of what is shipped.
        tasks: Scores in tasks.
        chat: Chat quality.
    """
    models = {name: evaluation.models[evaluated] for name, evaluated in students.items()}
    figures: dict[str, dict[str, Figure]] = {
        "nll": {name: _nll(model) for name, model in models.items()},
        "perplexity": {name: _perplexity(model) for name, model in models.items()},
        "kl": {name: _agreement(model, "kl") for name, model in models.items()},
        "top1": {name: _agreement(model, "top1") for name, model in models.items()},
        "format top1": {name: _export(export) for name, export in exports.items()},
        "size": {STUDENT: size},
        "tasks": _tasks(tasks, students) if tasks else {},
        "chat nll": _chat_nll(chat, students) if chat else {},
        "chat finished": _chat_finished(chat, students) if chat else {},
    }
    if bench is not None:
        figures |= {"speedup": dict(_speedups(bench)), "memory": _memory(bench)}
    return Table(
        conditions=_conditions(evaluation, next(iter(models.values()))),
        information={name: model.information for name, model in models.items()},
        figures=figures,
    )


def _conditions(evaluation: EvaluationRecord, model: MeasuredModel) -> dict[str, str]:
    protocol = evaluation.protocol.model_dump(mode="json")
    return {
        **{name: str(value) for name, value in protocol.items()},
        "windows": str(model.num_windows),
        "tokens": str(model.num_tokens),
    }


def _nll(model: MeasuredModel) -> Figure:
    return Figure(value=model.mean_nll, samples=model.window_nll, against=TEACHER)


def _tasks(tasks: TaskScores, models: Mapping[str, str]) -> dict[str, Figure]:
    """The headline score of every task; of a quantised model under the task's name and its own."""
    found = {}
    for called, name in models.items():
        for task, settings in tasks.record.tasks.items():
            samples = tuple(tasks.items[name][task])
            ends = score_interval(samples) or (None, None)
            subject = task if called in (TEACHER, STUDENT) else f"{task} ({called})"
            value = tasks.record.models[name].tasks[task][settings.metric]
            found[subject] = Figure(value=value, low=ends[0], high=ends[1], samples=samples, against=task)
    return found


def _chat_nll(chat: ChatRecord, models: Mapping[str, str]) -> dict[str, Figure]:
    """The loss in the assistant's turns."""
    counts = chat.conversation_tokens
    turns = {called: chat.models[name].turns for called, name in models.items()}
    return {
        called: Figure(value=found.mean_nll, samples=tuple(nll_samples(found, counts)), against=TEACHER)
        for called, found in turns.items()
    }


def _chat_finished(chat: ChatRecord, models: Mapping[str, str]) -> dict[str, Figure]:
    """The share of replies that end, of each model."""
    number, figures = len(chat.conversation_tokens), {}
    for called, name in models.items():
        share = chat.models[name].replies.finished
        low, high = share_interval(round(share * number), number)
        figures[called] = Figure(value=share, low=low, high=high)
    return figures


def _perplexity(model: MeasuredModel) -> Figure:
    ends = mean_interval(model.window_nll)
    if ends is None:
        return Figure(value=model.perplexity)
    return Figure(value=model.perplexity, low=math.exp(ends[0]), high=math.exp(ends[1]))


def _agreement(model: MeasuredModel, name: str) -> Figure:
    found = model.agreement
    if found is None:
        return Figure(value=None, reason="it was not compared with the teacher")
    ends = mean_interval(getattr(found, f"window_{name}")) or (None, None)
    return Figure(value=getattr(found, name), low=ends[0], high=ends[1])


def _export(export: ExportRecord) -> Figure:
    logits = export.logits.get("all")
    if logits is not None:
        return Figure(value=logits.top1_agreement)
    if export.status == "bit-equal":  # the student's own tensors
        return Figure(value=1.0)
    return Figure(value=None, reason=f"{export.format} was {export.status} on this machine")


def _speedups(bench: Results) -> Mapping[str, Figure]:
    """Of every student against the teacher in the same precision, cell by cell."""
    arms = {arm.id: arm for arm in bench.arms}
    teacher = bench.arms[0].model
    found = {}
    for comparison in bench.comparisons:
        baseline, candidate = arms[comparison.baseline], arms[comparison.candidate]
        if (
            baseline.model != teacher
            or candidate.model == teacher
            or baseline.precision != candidate.precision
        ):
            continue
        for cell in comparison.cells:
            name = f"{candidate.precision} {cell.identity}"
            is_indicative = bench.protocol.is_indicative
            found[name] = Figure(value=None, reason=INDICATIVE) if is_indicative else _speedup(cell)
    return found


def _speedup(cell: CellResult) -> Figure:
    if cell.speedup is None:
        return Figure(value=None, reason=f"{cell.status}: {cell.reason}")
    noise = None if cell.status == "ok" else cell.reason or cell.status
    best = cell.roofline.best_speedup if isinstance(cell.roofline, Roofline) else None
    speedup = cell.speedup
    return Figure(value=speedup.ratio, low=speedup.low, high=speedup.high, best=best, noise=noise)


def _memory(bench: Results) -> dict[str, Figure]:
    teacher, found = bench.arms[0].model, {}
    for arm in bench.arms:
        if arm.model == teacher:
            continue
        peak = arm.peak_memory
        if isinstance(peak, Absent):
            found[arm.precision] = Figure(value=None, reason=peak.absent)
        else:
            used = peak.peak_bytes if peak.device_bytes is None else peak.device_bytes
            found[arm.precision] = Figure(value=float(used))
    return found
