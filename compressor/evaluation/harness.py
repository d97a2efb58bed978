"""Tasks through lm-eval, an optional extra: what they consist of, and scores item by item."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.core.errors import (
    CompressExportError,
    DependencyError,
    NetworkError,
    UsageError,
    nearest,
)
from compressor.data.task_definitions import DEFINITIONS, refuse_code
from compressor.runs.artifact import sha256_of_file

_OFFLINE_WORDS = ("offline", "connection", "couldn't reach", "resolve", "hub")


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaf:
    """A task that consists of nothing but items.

    Attributes:
        name: lm-eval's name.
        task: lm-eval's object.
        manager: The manager that it comes from.
        shots: Examples in each prompt.
        num_items: How many items are measured.
    """

    name: str
    task: Any
    manager: Any
    shots: int
    num_items: int

    @property
    def identity(self) -> str:
        """What tells it from the same task asked otherwise."""
        return f"{self.name}-{self.shots}shot"


def fingerprint_of_tasks(directory: Path | None, *, trust_code: bool) -> str | None:
    """sha256 over a directory of one's own tasks, or None without one.

    Raises:
        UsageError: when it is no directory, or holds no task.
        UnsupportedError: when a task of it would run Python code, which nobody allowed.
    """
    if directory is None:
        return None
    files = sorted(path for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else []
    definitions = [path for path in files if path.suffix in DEFINITIONS]
    if not definitions:
        raise UsageError(
            "there are no tasks in this directory",
            where=str(directory),
            expected="a directory with lm-eval's YAML files",
            hint="name the directory that holds the tasks' .yaml files",
        )
    if not trust_code:
        refuse_code(files, hint="read it, and allow it with --trust-remote-code")
    sums = [f"{path.relative_to(directory).as_posix()} {sha256_of_file(path)}" for path in files]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def load_leaves(
    manager: Any, wanted: Mapping[str, int | None], *, limit: int | None
) -> dict[str, list[Leaf]]:
    """Open tasks and their data: task as it was named -> what it consists of, groups taken apart.

    Raises:
        UsageError: for a task that lm-eval does not know, or shots that a task does not take.
        NetworkError: when its data cannot be had.
        DependencyError: when it needs a library that is not installed.
    """
    unknown = [name for name in wanted if name not in manager.all_tasks]
    if unknown:
        raise UsageError(
            f"unknown task {unknown[0]!r}",
            where="--tasks",
            hint=nearest(unknown[0], manager.all_tasks) or "choose one that `lm-eval ls tasks` lists",
        )
    found: dict[str, list[Leaf]] = {}
    for name, shots in wanted.items():
        try:
            tasks = dict(_flat(manager.load_task_or_group(name)))
            found[name] = [_leaf(manager, one, task, shots, limit=limit) for one, task in tasks.items()]
        except CompressExportError:
            raise
        except Exception as error:  # each task's data and code raise what they like
            raise _loading_error(name, error) from error
    return found


def measure_items(
    model: Any, leaf: Leaf, indices: Sequence[int], *, seed: int, chat_template: bool
) -> dict[str, list[float]]:
    """Scores of some items by metric and filter, such as `acc,none`, in the order of `indices`.

    `model` is one of lm-eval's. Metrics that are no number per item are left out.
    """
    import lm_eval

    measured = lm_eval.simple_evaluate(
        model=model,
        tasks=[leaf.task],
        task_manager=leaf.manager,
        samples={leaf.name: list(indices)},
        num_fewshot=leaf.shots,
        bootstrap_iters=0,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    by_metric: dict[str, dict[int, float]] = {}
    for sample in measured["samples"][leaf.name]:
        for metric in sample["metrics"]:
            if isinstance(score := _number(sample[metric]), float):
                by_metric.setdefault(f"{metric},{sample['filter']}", {})[int(sample["doc_id"])] = score
    return {
        name: [scores[index] for index in indices]
        for name, scores in by_metric.items()
        if scores.keys() == set(indices)
    }


def wrap_model(model: Any, tokenizer: Any, *, batch_size: int) -> Any:
    """A loaded model as lm-eval's class for Hugging Face models, without a BOS token of its own."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)


def _flat(nested: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in nested.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner)
        elif inner is not None:
            yield str(name), inner


def _leaf(manager: Any, name: str, task: Any, shots: int | None, *, limit: int | None) -> Leaf:
    own = task.get_config("num_fewshot")
    if shots is not None and own == 0 != shots:
        raise UsageError(
            f"the task {name} has its own prompt, without examples",
            where="--tasks",
            expected=f"{name}:0",
            found=f"{shots} shots",
            hint=f"write {name} without a number",
        )
    num_items = len(task.eval_docs)
    return Leaf(
        name=name,
        task=task,
        manager=manager,
        shots=(own or 0) if shots is None else shots,
        num_items=num_items if limit is None else min(limit, num_items),
    )


def _number(value: object) -> float | None:
    """A score as a number; None of lists, texts and pairs that only an aggregation understands."""
    if hasattr(value, "item"):
        value = value.item()
    return float(value) if isinstance(value, bool | int | float) else None


def _loading_error(name: str, error: Exception) -> CompressExportError:
    text = json.dumps(str(error))[:300]
    if isinstance(error, ImportError):
        return DependencyError(
            f"the task {name} needs a library that is not installed",
            found=text,
            hint=f"pip install 'lm-eval[{name.partition('_')[0]}]'",
        )
    words = f"{type(error).__name__} {error}".lower()
    if isinstance(error, OSError | ConnectionError) or any(word in words for word in _OFFLINE_WORDS):
        return NetworkError(
            f"the data of the task {name} cannot be had",
            found=text,
            hint="go online once to keep a copy, or use tasks of your own with --task-dir",
        )
    return UsageError(
        f"the task {name} cannot be used", where="--tasks", found=text, hint="correct its definition"
    )
