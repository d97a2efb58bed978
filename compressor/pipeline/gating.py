"""A run's gates: the two tables from what its stages recorded, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from bench.report.results import Results
from compressor.evaluation.chat_record import ChatRecord
from compressor.evaluation.record import EvaluationRecord
from compressor.evaluation.task_record import TasksRecord, read_headlines
from compressor.gates.judge import judge
from compressor.gates.record import Figure, GateReport
from compressor.gates.tables import TEACHER, TaskScores, student_table, teacher_table
from compressor.models.dims import weight_bytes
from compressor.pipeline.gate_choices import shipped_precision
from compressor.pipeline.promise import shipped_format
from compressor.planning.plan import Plan
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ModelArtifact
from exporters.verification.record import ExportRecord

TASKS_PLACE = "stages/tasks"
# What the evaluation calls models that are not released, and the quantised one.
_OF_TEACHER, _QUANTISED = (TEACHER, "corrected teacher"), "quantized"


def judged(
    recipe: Recipe,
    plan: Plan,
    *,
    evaluation: EvaluationRecord,
    exports: Mapping[str, ExportRecord],
    bench: Results | None,
    tasks: TasksRecord | None,
    chat: ChatRecord | None,
    made: Mapping[str, ModelArtifact],
) -> GateReport | None:
    """The verdicts on a run's student; None where no gate is set."""
    if not recipe.gates.demanded():
        return None
    scores = None
    if tasks is not None:
        items = {name: read_headlines(made[TASKS_PLACE].path, tasks, name) for name in tasks.models}
        scores = TaskScores(record=tasks, items=items)
    student = student_table(
        evaluation,
        released(evaluation),
        tasks=scores,
        chat=chat,
        exports=exports,
        bench=bench,
        size=_size(recipe, plan, made),
    )
    return judge(recipe.gates, teacher_table(evaluation, scores, chat), student)


def released(evaluation: EvaluationRecord) -> dict[str, str]:
    """What is released -> what the evaluation calls it: the last 16-bit model, and the FP8 one."""
    names = [name for name in evaluation.models if name not in (*_OF_TEACHER, _QUANTISED)]
    found = {"student": names[-1]}
    return found | ({"student FP8": _QUANTISED} if _QUANTISED in evaluation.models else {})


def _size(recipe: Recipe, plan: Plan, made: Mapping[str, ModelArtifact]) -> Figure:
    from exporters.registry import place_of  # with torch

    name = shipped_format(recipe.quantize)
    artifact = made.get(place_of(name))
    if artifact is None:
        return Figure(value=None, reason=f"{name} is none of the formats")
    num_bytes = sum(record["bytes"] for record in artifact.files.values())
    least = weight_bytes(plan.student.dims, shipped_precision(recipe))
    return Figure(value=float(num_bytes), best=float(least))
