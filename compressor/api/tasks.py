"""Tasks of lm-eval: measured at once, or in shares of several machines."""

from __future__ import annotations

from pathlib import Path

from compressor.api.execution import SCRATCH, Execution, require
from compressor.api.opened import open_measured
from compressor.core.errors import UsageError
from compressor.core.records import Record
from compressor.recipe.recipe import Evaluate
from compressor.runs.artifact import ModelArtifact


class TaskShare(Record):
    """What is there of tasks that are measured in shares, in units of one model, one task and some items."""

    done: int
    left: int


def evaluate_tasks(
    models: tuple[str, ...],
    out_dir: Path,
    *,
    settings: Evaluate,
    shard: tuple[int, int] | None = None,
    execution: Execution | None = None,
) -> ModelArtifact | TaskShare:
    """Measure models on tasks of lm-eval, item by item; the first is the baseline.

    What was interrupted goes on where it was. With a `shard`, (1, 4) being the first of four, only that share
    is measured; without one, everything that is left is measured and the models are compared. What is
    finished is kept beside `out_dir`.

    Raises:
        DependencyError: without lm-eval, or a library that a task needs.
        UsageError: for a task that does not exist, or no task.
        UnsupportedError: for own tasks that would run code.
        NetworkError: for tasks whose data cannot be had.
    """
    from compressor.data.lm_eval_tasks import require_lm_eval
    from compressor.evaluation.task_stage import TASKS, measure_share, task_config

    execution = execution or Execution()
    if not settings.tasks:
        raise UsageError("there are no tasks to measure", where="--tasks", hint="name one with --tasks NAME")
    require(
        shard is None or not execution.overwrite,
        "a share cannot start over: the others may be at work on the same tasks",
        where="--shard, --overwrite",
        hint="leave one of them out",
    )
    require_lm_eval()
    others = open_measured(models, out_dir, execution, graphs=False)
    config = task_config(settings, trust_code=execution.environment.trust_remote_code)
    store = out_dir.absolute().parent / SCRATCH / f"{out_dir.name}-tasks"
    config = config.model_copy(update={"store": str(store)})
    if shard is None:
        return execution.run(TASKS, config, next(iter(others.values())), out_dir, others=others)
    done, total = measure_share(config, execution.context(others=others), store, shard)
    return TaskShare(done=done, left=total - done)
