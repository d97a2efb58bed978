"""The questions of a task that removals of layers are measured by: a file of ours, or a task of lm-eval.

Of lm-eval, an optional extra, come the documents, the prompts with their examples, and which answer is right;
the model's likelihoods are measured here. A task is named as `lm-eval ls tasks` lists it, or by a .yaml file
that defines it. It must be of the type multiple_choice, with one right answer to each question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.core.errors import UnsupportedError, UsageError, nearest
from compressor.data.lm_eval_tasks import defining_file, open_manager, require_lm_eval
from compressor.data.multiple_choice import Asked, read_questions
from compressor.data.task_definitions import DEFINITIONS, refuse_code

_EXAMPLES_SEED = 1234  # lm-eval's own default
_LIKELY, _UNLIKELY = (0.0, False), (-1e4, False)


def is_of_lm_eval(task: str) -> bool:
    """Whether a task is one of lm-eval and no file of questions."""
    path = Path(task)
    return path.suffix in DEFINITIONS or not (path.is_file() or path.suffix or path.parent != Path())


def require_task(task: str) -> None:
    """Refuse what is neither a file of questions nor a task that could be read; loads no lm-eval.

    Raises:
        UsageError: for a file that is not there, or naming a line that is no question.
        DependencyError: for a task of lm-eval without it.
        UnsupportedError: for a definition that would run code of its own.
    """
    if not is_of_lm_eval(task):
        read_questions(Path(task))
        return
    require_lm_eval()
    if Path(task).suffix not in DEFINITIONS:
        return
    if not Path(task).is_file():
        raise UsageError(
            "there is no such definition of a task",
            where=task,
            hint="name a .yaml file of lm-eval, a task that `lm-eval ls tasks` lists, or a .jsonl file",
        )
    hint = "name a task that `lm-eval ls tasks` lists, or write its questions to a .jsonl file"
    refuse_code([Path(task)], hint=hint)


def read_task(task: str) -> tuple[Asked, ...]:
    """The questions of a task.

    Raises:
        UsageError, DependencyError: as `require_task` does; for a task that lm-eval does not know or load.
        UnsupportedError: for a task of lm-eval of another type, or with several right answers.
    """
    require_task(task)
    if is_of_lm_eval(task):
        return _of_lm_eval(task)
    return tuple(question.asked() for question in read_questions(Path(task)))


def task_sha256(task: str) -> str:
    """What tells a task's questions from others: of a file its bytes, of lm-eval every prompt and answer."""
    if not is_of_lm_eval(task):
        require_task(task)
        return hashlib.sha256(Path(task).read_bytes()).hexdigest()
    content = [(asked.answers, asked.right) for asked in read_task(task)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


@lru_cache(maxsize=2)  # asked for before a run and in its stage
def _of_lm_eval(task: str) -> tuple[Asked, ...]:
    defined = Path(task) if Path(task).suffix in DEFINITIONS else None
    name = _name_in(defined) if defined else task
    manager = open_manager(defined.parent if defined else None, [name])
    if name not in manager.all_tasks:
        raise UsageError(
            f"lm-eval knows no task {name!r}",
            where="--depth-task",
            hint=nearest(name, manager.all_tasks)
            or "choose one that `lm-eval ls tasks` lists, or name a .jsonl file of questions",
        )
    if defined is not None and (found := defining_file(manager, name)) != defined.resolve():
        raise UsageError(
            f"another file beside it defines the task {name!r} as well",
            where=task,
            found=found,
            hint="rename one of the two tasks, or move the file into a directory of its own",
        )
    try:
        loaded = manager.load_task_or_group(name)
    except Exception as error:  # a task reads its data by code of its own
        raise UsageError(
            f"lm-eval cannot load the task {name!r}",
            where="--depth-task",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            hint="its data must be reachable or in the cache; or name a .jsonl file of questions",
        ) from error
    asked = tuple(one for part in _leaves(loaded) for one in _asked(part))
    if not asked:
        raise UsageError("this task holds no question", where=f"--depth-task {task}", hint="name another")
    return asked


def _name_in(file: Path) -> str:
    """The name of the task that a file defines; its other tags are lm-eval's own."""
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key == "task" and value.strip():
            return value.strip().strip("'\"")
    raise UsageError(
        "this file defines no single task", where=str(file), expected="a line `task: NAME`", hint="add it"
    )


def _leaves(loaded: Mapping[Any, Any]) -> Iterator[Any]:
    """The tasks of a group, however deep."""
    for part in loaded.values():
        if isinstance(part, Mapping):
            yield from _leaves(part)
        else:
            yield part


def _asked(task: Any) -> Iterator[Asked]:
    name = str(task.config.task)
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UnsupportedError(
            "layers are measured by multiple-choice questions only",
            where=f"--depth-task: {name}",
            expected="a task of the type multiple_choice",
            found=task.OUTPUT_TYPE,
            hint="choose such a task, for example arc_easy, hellaswag or winogrande",
        )
    task.set_fewshot_seed(seed=_EXAMPLES_SEED)
    task.build_all_requests()
    by_document: dict[int, list[Any]] = {}
    for request in task.instances:
        by_document.setdefault(request.doc_id, []).append(request)
    for number, requests in by_document.items():
        where = f"{name}, document {number}"
        # Some tasks ask for every answer by itself as well, without a question.
        pairs = [request.args[:2] for request in requests if request.args[0]]
        right = _right(task, requests, len(pairs))
        if len(right) != 1:
            raise UnsupportedError(
                "a question of this task has not one right answer",
                where=f"--depth-task: {where}",
                expected=1,
                found=len(right),
                hint="choose another task, or name a .jsonl file of questions",
            )
        yield Asked(answers=tuple(map(_split, pairs)), right=right[0], where=where)


def _right(task: Any, requests: list[Any], num_answers: int) -> list[int]:
    """The answers that lm-eval itself counts as right, were the model to choose them."""
    found = []
    for index in range(num_answers):
        likelihoods = [_LIKELY if index == other else _UNLIKELY for other in range(len(requests))]
        if task.process_results(requests[0].doc, likelihoods).get("acc") == 1:
            found.append(index)
    return found


def _split(pair: Iterable[str]) -> tuple[str, str]:
    """A context and its answer; white space between them belongs to the answer, as in lm-eval."""
    context, answer = pair
    asked = context.rstrip()
    return asked, context[len(asked) :] + answer
