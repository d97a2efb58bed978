"""The stage that measures models on tasks, in units of a few items that are kept as they are finished.

A unit is one model, one task and up to `UNIT_ITEMS` items. What was interrupted goes on with the first unit
that is missing; several machines may each do a share of them, in one directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.choices.tasks import expand_tasks, headline_of
from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.data.lm_eval_tasks import open_manager
from compressor.evaluation.evaluate_stage import load_evaluated
from compressor.evaluation.harness import (
    Leaf,
    fingerprint_of_tasks,
    load_leaves,
    measure_items,
    wrap_model,
)
from compressor.evaluation.paired import paired
from compressor.evaluation.record import EVALUATION_FILE
from compressor.evaluation.task_record import (
    ITEMS,
    TaskModel,
    TaskProtocol,
    TaskSettings,
    TasksRecord,
)
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.evaluation import Evaluate
from compressor.recipe.option import Section, option
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, fingerprint_of, sha256_of_file, write_json
from compressor.runs.inputs import version_of
from compressor.runs.stage import Stage, StageContext, StageResult

UNIT_ITEMS = 200
Scores = dict[str, list[float]]  # by metric and filter, in the order of the items


class TaskStageConfig(Section):
    """What to measure.

    Attributes:
        tasks: Names of lm-eval, of own tasks or of sets, with shots after a colon.
        task_dir: Directory of own tasks; what is in it is told by `task_files`.
        limit: Items of each task.
        store: Directory in which finished units are kept; by default the stage's own.
    """

    tasks: tuple[str, ...]
    task_dir: str | None = option(None, "Directory of own tasks.", course=True, flag="")
    task_files: str | None = None
    limit: int | None = None
    chat_template: bool = False
    batch_size: int = 8
    store: str | None = option(None, "Directory of finished units.", course=True, flag="")


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """Some items of one task for one model, and the file that holds their scores."""

    model: str
    leaf: Leaf
    indices: range
    key: str

    def file(self, store: Path) -> Path:
        """Where its scores are kept."""
        return store / f"{self.key[:32]}.json"


def task_config(settings: Evaluate, *, trust_code: bool) -> TaskStageConfig:
    """A recipe's tasks as the stage's configuration.

    Raises:
        UsageError, UnsupportedError: for a directory of own tasks that cannot be used.
    """
    directory = Path(settings.task_dir) if settings.task_dir else None
    return TaskStageConfig(
        tasks=settings.tasks,
        task_dir=settings.task_dir,
        task_files=fingerprint_of_tasks(directory, trust_code=trust_code),
        limit=settings.limit,
        chat_template=settings.chat_template,
        batch_size=settings.task_batch_size,
    )


def require_tasks(settings: Evaluate, *, trust_code: bool) -> None:
    """Refuse, before any work, tasks that do not exist or whose data cannot be had.

    Raises:
        CompressExportError: see `load_leaves`.
    """
    _leaves(task_config(settings, trust_code=trust_code))


def run(config: TaskStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Measure `context.others`, the first being the baseline; write `evaluation.json` and the items' scores.

    Raises:
        CompressExportError: see `load_leaves`.
    """
    leaves = _leaves(config)
    store = Path(config.store) if config.store else out_dir / "units"
    scores = {
        unit: read_unit(unit, store) for unit in measure_units(config, leaves, context, store, share=(1, 1))
    }
    record = _record(config, leaves, context, scores)
    for model in record.models:
        for leaf in _distinct(leaves):
            where = _made(out_dir / ITEMS / model) / f"{leaf.identity}.json"
            write_json(where, _joined(model, leaf, scores))
    write_json(out_dir / EVALUATION_FILE, record.to_json())
    return StageResult(num_parameters=source.num_parameters, details=record.to_json())


def measure_share(
    config: TaskStageConfig, context: StageContext, store: Path, share: tuple[int, int]
) -> tuple[int, int]:
    """Measure one share of the units, (1, 4) being the first of four; returns how many are there, and of all.

    Raises:
        CompressExportError: see `load_leaves`.
    """
    leaves = _leaves(config)
    measure_units(config, leaves, context, store, share=share)
    units = list(_units(config, leaves, context))
    return sum(unit.file(store).is_file() for unit in units), len(units)


def measure_units(
    config: TaskStageConfig,
    leaves: Mapping[str, list[Leaf]],
    context: StageContext,
    store: Path,
    *,
    share: tuple[int, int],
) -> list[Unit]:
    """Measure the units of a share that are not there yet, one model in memory at a time; returns them."""
    number, count = share
    units = [
        unit for place, unit in enumerate(_units(config, leaves, context)) if place % count == number - 1
    ]
    _made(store)
    for name, artifact in context.others.items():
        missing = [unit for unit in units if unit.model == name and not unit.file(store).is_file()]
        if not missing:
            continue
        tokenizer = load_tokenizer(artifact.path, trust_remote_code=context.trust_remote_code)
        wrapped = wrap_model(load_evaluated(artifact, context), tokenizer, batch_size=config.batch_size)
        with context.console.progress(f"tasks of {name}", len(missing)) as tick:
            for unit in missing:
                _measure(unit, wrapped, config, context, store)
                tick(unit.leaf.name)
        del wrapped
    return units


def read_unit(unit: Unit, store: Path) -> Scores:
    """The scores of a finished unit.

    Raises:
        VerificationError: when the file is another unit's, or lacks items.
    """
    file, what = unit.file(store), "the scores of some items"
    held = read_json_mapping(file, what=what)
    scores = held.get("scores")
    sound = isinstance(scores, dict) and all(
        isinstance(one, list) and len(one) == len(unit.indices) for one in scores.values()
    )
    if held.get("key") != unit.key or not sound:
        raise VerificationError(
            f"{what} are not those that were asked for",
            where=str(file),
            expected=f"{len(unit.indices)} items of {unit.leaf.name}",
            hint="delete this file, and repeat the command: it measures these items again",
        )
    return scores  # type: ignore[return-value]


def _measure(unit: Unit, wrapped: Any, config: TaskStageConfig, context: StageContext, store: Path) -> None:
    scores = measure_items(
        wrapped, unit.leaf, unit.indices, seed=context.seed, chat_template=config.chat_template
    )
    if not scores:
        raise VerificationError(
            "the task gives no score to single items, so models cannot be compared by it",
            where=unit.leaf.name,
            hint="choose a task with a metric that is a mean over its items",
        )
    write_json(unit.file(store), {"key": unit.key, "scores": scores})


def _leaves(config: TaskStageConfig) -> dict[str, list[Leaf]]:
    wanted = expand_tasks(config.tasks)
    manager = open_manager(Path(config.task_dir) if config.task_dir else None, wanted)
    return load_leaves(manager, wanted, limit=config.limit)


def _units(
    config: TaskStageConfig, leaves: Mapping[str, list[Leaf]], context: StageContext
) -> Iterator[Unit]:
    common = {
        "lm_eval": version_of("lm-eval"),
        "transformers": version_of("transformers"),
        "task_files": config.task_files,
        "chat_template": config.chat_template,
        "batch_size": config.batch_size,
        "dtype": context.dtype,
        "device": context.device,
        "seed": context.seed,
    }
    for name, artifact in context.others.items():
        for leaf in _distinct(leaves):
            for start in range(0, leaf.num_items, UNIT_ITEMS):
                indices = range(start, min(start + UNIT_ITEMS, leaf.num_items))
                own = {"model": _identity(artifact), "task": leaf.name, "shots": leaf.shots}
                key = fingerprint_of({**common, **own, "items": [indices.start, indices.stop]})
                yield Unit(model=name, leaf=leaf, indices=indices, key=key)


def _identity(artifact: ModelArtifact) -> list[str]:
    """What tells a model from others: two may hold the same 16-bit weights, one rounded ones beside them."""
    recorded = artifact.path / ARTIFACT_FILE
    return [artifact.fingerprint, *([sha256_of_file(recorded)] if recorded.is_file() else [])]


def _distinct(leaves: Mapping[str, list[Leaf]]) -> list[Leaf]:
    """What all tasks consist of; a part of several groups once."""
    return list({leaf.identity: leaf for each in leaves.values() for leaf in each}.values())


def _joined(model: str, leaf: Leaf, scores: Mapping[Unit, Scores]) -> Scores:
    """One model's scores of all items of a task, of the metrics that every unit has."""
    wanted = (model, leaf.identity)
    parts = [found for unit, found in scores.items() if (unit.model, unit.leaf.identity) == wanted]
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: [score for part in parts for score in part[name]] for name in names}


def _record(
    config: TaskStageConfig,
    leaves: Mapping[str, list[Leaf]],
    context: StageContext,
    scores: Mapping[Unit, Scores],
) -> TasksRecord:
    models = {
        name: {task: _grouped(name, parts, scores) for task, parts in leaves.items()}
        for name in context.others
    }
    first, *others = models
    settings = {task: _settings(task, parts, list(models[first][task])) for task, parts in leaves.items()}
    return TasksRecord(
        protocol=TaskProtocol(
            lm_eval=version_of("lm-eval"),
            compute_dtype=context.dtype,
            limit=config.limit,
            seed=context.seed,
            chat_template=config.chat_template,
            batch_size=config.batch_size,
            task_files=config.task_files,
        ),
        tasks=settings,
        models={
            name: TaskModel(
                num_parameters=context.others[name].num_parameters,
                tasks={task: {m: _mean(one) for m, one in found.items()} for task, found in each.items()},
            )
            for name, each in models.items()
        },
        paired=tuple(
            paired(task, name, metric, models[first][task][metric], models[name][task][metric])
            for name in others
            for task in leaves
            for metric in (settings[task].metric,)
        ),
    )


def _grouped(model: str, parts: list[Leaf], scores: Mapping[Unit, Scores]) -> Scores:
    """One model's scores of all items of a group, whose mean weighs its parts by their size."""
    joined = [_joined(model, leaf, scores) for leaf in parts]
    common = [metric for metric in joined[0] if all(metric in one for one in joined)]
    return {metric: [score for one in joined for score in one[metric]] for metric in common}


def _settings(task: str, parts: list[Leaf], metrics: list[str]) -> TaskSettings:
    return TaskSettings(
        shots=parts[0].shots,
        version=str(getattr(parts[0].task, "VERSION", "unknown")),
        num_items=sum(leaf.num_items for leaf in parts),
        parts=tuple(leaf.name for leaf in parts),
        metric=headline_of(task, metrics),
    )


def _mean(scores: list[float]) -> float:
    return sum(scores) / len(scores)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


TASKS: Stage[TaskStageConfig] = Stage(
    name="evaluate-tasks",
    run=run,
    format_version=2,
    libraries=("torch", "transformers", "lm-eval", "datasets"),
)
