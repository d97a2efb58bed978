"""Scores in tasks against the scores of their items: means, and comparisons by other formulas."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from compressor.core.json_files import as_record, read_json_mapping
from compressor.evaluation.task_record import ITEMS, Paired, TasksRecord
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact
from exporters.checks.comparison import check_comparison
from exporters.checks.equality import expect_equal
from exporters.checks.record import check_close


def check_scores(directory: Path, artifact: ModelArtifact) -> dict[str, JsonValue]:
    """Refuse scores that are not the means of their items, or tests that the items do not give."""
    file = directory / ARTIFACT_FILE
    record = as_record(TasksRecord, artifact.details, what="the record of tasks", where=file)
    held = read_json_mapping(directory / "evaluation.json", what="the scores")
    expect_equal("two records of the scores differ", record.to_json(), held, where=str(directory))
    items = {model: _items(directory, record, model) for model in record.models}
    num_scores = 0
    for model, scores in items.items():
        for task, (_, own) in scores.items():
            for metric, recorded in record.models[model].tasks[task].items():
                where = f"{directory}: {model}, {task}, {metric}"
                check_close(sum(own[metric]) / len(own[metric]), recorded, where=where)
                num_scores += 1
    first = next(iter(record.models))
    for found in record.paired:
        _check_test(
            found, items[first], items[found.model], where=f"{directory}: {found.model}, {found.task}"
        )
    return {"num_scores": num_scores, "num_comparisons": len(record.paired)}


_Items = dict[str, tuple[int, dict[str, list[float]]]]


def _items(directory: Path, record: TasksRecord, model: str) -> _Items:
    """Of every task, how many items there are and their scores by metric."""
    found: _Items = {}
    for task, settings in record.tasks.items():
        parts = [
            read_json_mapping(
                directory / ITEMS / model / f"{part}-{settings.shots}shot.json", what="scores of items"
            )
            for part in settings.parts
        ]
        metrics = [name for name in parts[0] if all(name in part for part in parts)]
        scores = {name: [score for part in parts for score in part[name]] for name in metrics}
        for metric, listed in scores.items():
            where = f"{directory}: {model}, {task}, {metric}"
            expect_equal("items are missing", settings.num_items, len(listed), where=where)
        found[task] = settings.num_items, scores
    return found


def _check_test(found: Paired, first: _Items, own: _Items, *, where: str) -> None:
    before, now = (scores[found.task][1][found.metric] for scores in (first, own))
    check_comparison(found, before, now, where=where)
