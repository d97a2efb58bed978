"""Zero- and few-shot tasks through lm-eval, an optional extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from compressor.core.errors import DependencyError, UsageError, nearest
from compressor.evaluation.record import EVALUATION_FILE, SCHEMA
from compressor.models.load import load_model
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.recipe import Section
from compressor.runs.artifact import ModelArtifact, write_json
from compressor.runs.stage import Stage, StageContext, StageResult

_INSTALL = "pip install 'compress-export[lm-eval]'"


class TaskStageConfig(Section):
    """lm-eval task names; shots and metrics are the tasks' own."""

    tasks: tuple[str, ...]


def require_lm_eval() -> None:
    """Refuse tasks where nothing can measure them.

    Raises:
        DependencyError: without lm-eval.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DependencyError("tasks need lm-eval", hint=_INSTALL)


def run(config: TaskStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Measure the context's models on every task.

    Raises:
        DependencyError: without lm-eval.
        UsageError: for a task that lm-eval does not know.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DependencyError("tasks need lm-eval", found=error, hint=_INSTALL) from error
    manager = TaskManager()
    unknown = [task for task in config.tasks if task not in manager.all_tasks]
    if unknown:
        raise UsageError(
            f"unknown task {unknown[0]!r}",
            where="--tasks",
            hint=nearest(unknown[0], manager.all_tasks) or "choose one that `lm-eval ls tasks` lists",
        )
    models: dict[str, object] = {}
    for name, artifact in context.others.items():
        model = load_model(artifact.path, dtype=context.dtype, device=context.device)
        wrapped = HFLM(pretrained=model, tokenizer=load_tokenizer(artifact.path))
        measured = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(config.tasks), task_manager=manager, random_seed=context.seed
        )
        results = {task: _numbers(measured["results"][task]) for task in config.tasks}
        models[name] = {"num_parameters": artifact.num_parameters, "tasks": results}
    report = {
        "schema": SCHEMA,
        "metric": "tasks",
        "protocol": {"lm_eval": lm_eval.__version__, "compute_dtype": context.dtype},
        "models": models,
    }
    write_json(out_dir / EVALUATION_FILE, report)
    return StageResult(num_parameters=source.num_parameters, details=report)


def _numbers(result: dict[str, object]) -> dict[str, float]:
    return {key: value for key, value in result.items() if isinstance(value, (int, float))}


TASKS: Stage[TaskStageConfig] = Stage(
    name="evaluate-tasks", run=run, libraries=("torch", "transformers", "lm-eval", "datasets")
)
