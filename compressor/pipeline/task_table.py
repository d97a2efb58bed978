"""Scores in tasks as a table: every model's, and each further model against the first, item by item."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.evaluation.task_record import Paired, TasksRecord

_PERCENT = 100


def task_table(record: TasksRecord) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    """Title, header and rows, in percent and percentage points."""
    protocol = record.protocol
    parts = [f"lm-eval {protocol.lm_eval}", protocol.compute_dtype]
    parts += ["chat template"] if protocol.chat_template else []
    parts += [f"the first {protocol.limit} items of each task"] if protocol.limit else []
    title = f"Tasks ({', '.join(parts)})"
    header = ("task", "shots", "metric", "items", "model", "score", "against the first (95 %)", "exact test")
    compared = {(found.task, found.model): found for found in record.paired}
    rows = [
        (
            task,
            str(settings.shots),
            settings.metric.partition(",")[0],
            f"{settings.num_items:,}",
            name,
            f"{_PERCENT * model.tasks[task][settings.metric]:.2f}",
            *difference_cells(compared.get((task, name))),
        )
        for task, settings in record.tasks.items()
        for name, model in record.models.items()
    ]
    return title, header, rows


def difference_cells(found: Paired | None) -> tuple[str, str]:
    """The difference with its interval in points, and the test; strokes for the first model."""
    if found is None:
        return "-", "-"
    low, difference, high = (_PERCENT * value for value in (found.low, found.difference, found.high))
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f})", found.test_of("item")
