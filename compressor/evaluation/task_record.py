"""`evaluation.json` of tasks: with which settings every model was measured, and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor.core.json_files import read_json_mapping
from compressor.core.records import Record
from compressor.evaluation.record import SCHEMA


class TaskProtocol(Record):
    """How tasks were measured; what a task sets itself is in its `TaskSettings`.

    Attributes:
        limit: Items of each task, the first ones; None for all.
        bos: Whether a BOS token is put before every request.
        task_files: sha256 over the directory of one's own tasks, where there is one.
    """

    lm_eval: str
    compute_dtype: str
    limit: int | None
    seed: int
    chat_template: bool
    batch_size: int
    bos: bool = False
    task_files: str | None = None


class TaskSettings(Record):
    """A task as it was asked.

    Attributes:
        shots: Examples in each prompt.
        version: The task's own.
        num_items: Over all of its parts.
        parts: The tasks that it consists of; itself, where it is none.
        metric: The metric that tables show; `acc_norm` is normalised by the answers' lengths, `acc` is not.
    """

    shots: int
    version: str
    num_items: int
    parts: tuple[str, ...]
    metric: str


class Paired(Record):
    """A model against the first one, item by item.

    Attributes:
        difference: Of the means, this model's over the first one's.
        low: Lower end of its 95 % interval.
        high: The upper end.
        p_value: Of the exact test that both are right equally often where items are right or wrong; else of
            Student's paired t test; None without a difference in any item.
        only_first: Items that only the first model has right; None where items have other scores.
        only_this: Items that only this model has right.
    """

    task: str
    model: str
    metric: str
    num_items: int
    difference: float
    low: float
    high: float
    p_value: float | None
    only_first: int | None = None
    only_this: int | None = None

    def test_of(self, compared: str) -> str:
        """What the test says, in words; `compared` is what was compared, such as an item."""
        if self.p_value is not None:
            return f"p = {self.p_value:.2g}"
        return "all differ by as much" if self.difference else f"no {compared} differs"


class TaskModel(Record):
    """One model's scores: task -> metric and filter -> mean over the items."""

    num_parameters: int
    tasks: dict[str, dict[str, float]]


ITEMS = "items"


class TasksRecord(Record):
    """Scores of every model, the first being the baseline."""

    schema_id: Literal["compress-export/evaluation/1"] = Field(SCHEMA, alias="schema")
    metric: Literal["tasks"] = "tasks"
    protocol: TaskProtocol
    tasks: dict[str, TaskSettings]
    models: dict[str, TaskModel]
    paired: tuple[Paired, ...] = ()


def read_headlines(directory: Path, record: TasksRecord, model: str) -> dict[str, list[float]]:
    """One model's scores of every item in the metric that stands for each task, by task.

    Raises:
        VerificationError: for scores that cannot be read.
    """
    found: dict[str, list[float]] = {}
    for task, settings in record.tasks.items():
        scores: list[float] = []
        for part in settings.parts:
            file = directory / ITEMS / model / f"{part}-{settings.shots}shot.json"
            scores += read_json_mapping(file, what="the scores of a task's items")[settings.metric]
        found[task] = scores
    return found
