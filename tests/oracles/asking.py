"""Asking llama.cpp: the worker runs in an environment of its own (`make oracles`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.gguf_cases import LogitCase

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("ORACLE_PYTHON", ROOT / ".venv-oracles" / "bin" / "python"))
_WORKER = Path(__file__).with_name("llama_cpp_worker.py")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Logits of one sequence and token ids of texts; `settings` are what llama.cpp's loader leaves unread."""

    path: Path
    ids: Sequence[int] = ()
    texts: Sequence[str] = ()
    settings: Mapping[str, float] = field(default_factory=dict)


def ask(questions: Sequence[Question], scratch: Path) -> tuple[str, list[dict[str, Any]]]:
    """llama-cpp-python's version, and per question `logits` and `tokens_0`, `tokens_1`, ..."""
    requests = [
        {
            "path": str(question.path),
            "ids": list(question.ids),
            "texts": list(question.texts),
            "settings": dict(question.settings),
            "out": str(scratch / f"answer-{number}.npz"),
        }
        for number, question in enumerate(questions)
    ]
    done = subprocess.run(
        [str(PYTHON), str(_WORKER)], input=json.dumps(requests), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"llama.cpp failed:\n{done.stderr[-2000:]}")
    answers = []
    for request in requests:
        with np.load(request["out"]) as stored:
            answers.append({name: stored[name] for name in stored.files})
    return done.stdout.split()[-1], answers


def question(path: Path, case: LogitCase) -> Question:
    return Question(path=path, ids=case.token_ids, settings=case.settings)
