"""lm-eval, an optional extra: whether it is here, and which tasks it knows."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import Any

from compressor.core.errors import DependencyError

LM_EVAL_HINT = "pip install 'compress-export[lm-eval]'"


def require_lm_eval() -> None:
    """Refuse tasks where nothing can read them.

    Raises:
        DependencyError: without lm-eval.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DependencyError("tasks need lm-eval", hint=LM_EVAL_HINT)


def open_manager(directory: Path | None, wanted: Collection[str] = ()) -> Any:
    """lm-eval's manager of tasks, those of a directory before its own.

    Where the directory has all that are wanted, the thousands of files of lm-eval's own are not read.

    Raises:
        DependencyError: without lm-eval.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    _confine_templates()
    if directory is None:
        return TaskManager()
    alone = TaskManager(include_path=str(directory), include_defaults=False)
    if wanted and set(wanted) <= set(alone.all_tasks):
        return alone
    return TaskManager(include_path=str(directory))


def defining_file(manager: Any, name: str) -> Path | None:
    """The file by which a manager knows a task; None of one that is made by code."""
    entry = manager.task_index[name]  # a dictionary before lm-eval 0.4.10
    found = entry.get("yaml_path") if isinstance(entry, dict) else entry.yaml_path
    return Path(found).resolve() if isinstance(found, str | Path) else None


def _confine_templates() -> None:
    """Let the templates of tasks reach what they are given and nothing else, as those of chats do.

    lm-eval fills them in with Jinja's plain environment, where a template is a program.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    if isinstance(plain, SandboxedEnvironment):
        return
    confined = SandboxedEnvironment(
        loader=plain.loader,
        undefined=plain.undefined,
        keep_trailing_newline=plain.keep_trailing_newline,
        trim_blocks=plain.trim_blocks,
        lstrip_blocks=plain.lstrip_blocks,
    )
    confined.filters.update(plain.filters)
    utils.env = confined
