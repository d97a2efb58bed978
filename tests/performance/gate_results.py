"""The measurement `gates`: three students of SmolLM2 judged by the same gates, with no network at all.

One is cut mildly and repaired, one is cut hard and left so, and of a copy of the first the final norm is set
to zero before it is exported, evaluated and timed: it answers the same to everything. Tasks are a folder that
is written from the held-out part of a local text. Every command runs in a network namespace of its own, which
has no route to anything (`unshare`, Linux).

What is finished is kept in `build` until all of it is, so that an interrupted measurement continues.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from compressor.core.errors import DependencyError, ResourceError
from compressor.data.lm_eval_tasks import require_lm_eval
from tests.extras.local_tasks import write_continuations
from tests.performance.kept import ROOT, place_of
from tests.performance.student_results import MODEL, TEXT
from tests.records import record_again
from tests.tiny_models import edit_tensors

NUM_ITEMS = 24
TASK = "continuation"
COMMON = (
    *("--calib-data", TEXT, "--calib-size", "8", "--calib-seq-len", "256", "--tokens", "0"),
    *("--eval-data", TEXT, "--eval-seq-len", "256", "--eval-size", "8"),
    *("--eval-tasks", f"{TASK}:0", "--formats", "huggingface,onnx", "--preflight", "off"),
    *("--isl-osl", "16/8", "--batch-size", "1", "--bench-precisions", "fp32", "--max-pairs", "5"),
)
MILD, HARD, CONSTANT = "80 %, repaired", "40 %, not repaired", "constant output"
STUDENTS = {
    MILD: ("--target", "80%"),
    HARD: ("--target", "40%", "--repair", "off"),
    CONSTANT: ("--target", "80%"),
}
# What a run makes of the student's weights, and what is its own beside the teacher's.
OF_WEIGHTS = ("student", "exports/onnx", "stages/evaluate", "stages/tasks", "bench")
OF_STUDENT = ("stages/prune", "stages/reconstruct", *OF_WEIGHTS)
# By the options of `run`; those of `gate` have no prefix.
GATES = {
    "perplexity-ratio": "3",
    "perplexity": "80",
    "kl": "1.2",
    "top1": "0.4",
    "formats": "onnx=0.99",
    "tasks": f"{TASK}=0.5",
    "task-ratio": "0.6",
    "speedup": "1x",
    "memory": "2GiB",
    "size": "230MB",
}
# Each judged alone, of the first student: what it cannot keep, and with which exit code that ends.
STRICTER = (
    {"perplexity-ratio": "1.1"},
    {"task-ratio": "1.5"},
    {"speedup": "4x"},
    {"memory": "500MB"},
    {"size": "218MB"},
    {"size": "100MB"},
)
# A program and all that it starts, as the root of a network namespace without any route.
_ALONE = ("unshare", "-r", "-n")
_PROGRAM = "import sys; from compressor.cli.main import invoke; sys.exit(invoke(sys.argv[1:]))"
_ASKS = "import socket; socket.create_connection(('192.0.2.1', 443), 5)"  # an address of documentation
_JUDGED = (0, 6, 7)


def run_gates() -> dict[str, Any]:
    """Verdicts and exit codes of the three students, and of the first by stricter gates.

    Raises:
        DependencyError: without lm-eval.
        ResourceError: where the system cannot take the network away.
    """
    require_lm_eval()
    require_no_network()
    place = place_of("gates")
    tasks = place / "tasks"
    if not (tasks / f"{TASK}.yaml").is_file():  # which is written last
        shutil.rmtree(tasks, ignore_errors=True)
        write_continuations(tasks, ROOT / TEXT, num_items=NUM_ITEMS, name=TASK)
    first, second, broken = (place / f"run-{number}" for number in range(3))
    students = {MILD: _run(STUDENTS[MILD], first)}
    copies = {HARD: (second, OF_STUDENT), CONSTANT: (broken, OF_WEIGHTS)}
    for name, (out, parts) in copies.items():
        if not out.is_dir():
            copy = copied_run(first, place / "copied", but=parts)
            if name == CONSTANT:
                zero_norm(copy / "stages" / "reconstruct")
            copy.rename(out)
        students[name] = _run(STUDENTS[name], out, made=parts)
    stricter = [{"limits": limits, **_judge(limits, first)} for limits in STRICTER]
    return {
        "students": students,
        "stricter": stricter,
        "command": " ".join(COMMON),
        "num_items": NUM_ITEMS,
        "seconds": round(sum(sum(found["seconds"].values()) for found in students.values())),
    }


def require_no_network() -> None:
    """Refuse a machine where a command of a namespace of its own can still ask something."""
    if shutil.which(_ALONE[0]) is None:
        raise DependencyError(f"{_ALONE[0]} is not installed", hint="install util-linux")
    done = without_network("-c", _ASKS)
    if "Network is unreachable" not in done.stderr:
        raise ResourceError(
            "the network cannot be taken away from a program here",
            where=" ".join(_ALONE),
            found=done.stderr.strip().rpartition("\n")[2] or "an answer",
            hint="allow user namespaces",
        )


def _run(words: tuple[str, ...], out: Path, *, made: tuple[str, ...] = ()) -> dict[str, Any]:
    """A run's verdicts; where it is a copy, the seconds are those of what was `made` in it."""
    gates = [word for name, limit in GATES.items() for word in (f"--gate-{name}", limit)]
    tasks = ("--eval-task-dir", str(place_of("gates") / "tasks"))
    found = _verdicts("run", MODEL, *words, *COMMON, *tasks, *gates, "-o", str(out))
    own = [where for where in found["seconds"] if (out / where).is_dir() and (not made or where in made)]
    return {**found, "seconds": {where: found["seconds"][where] for where in own}}


def _judge(limits: dict[str, str], out: Path) -> dict[str, Any]:
    """A finished run by its own gates but for these; the rows of these."""
    given = [word for name, limit in limits.items() for word in (f"--{name}", limit)]
    found = _verdicts("gate", str(out), *given)
    names = {name.replace("-", "_") for name in limits}
    return {**found, "rows": [row for row in found["rows"] if row["gate"] in names]}


def copied_run(run: Path, out: Path, *, but: tuple[str, ...]) -> Path:
    """A copy of a finished run without some of its parts, which the same command makes again; returns it."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run, out)
    for part in but:
        shutil.rmtree(out / part)
    return out


def zero_norm(student: Path) -> None:
    """Let a finished stage's model give the same to everything, with sums that agree."""
    edit_tensors(student, lambda tensors: tensors["model.norm.weight"].zero_())
    record_again(student)


def _verdicts(*words: str) -> dict[str, Any]:
    """The exit code of a command, the rows of its gates, and the seconds that each of its stages took.

    Raises:
        subprocess.CalledProcessError: where it ends for another reason than its gates.
    """
    done = without_network("-c", _PROGRAM, *words, "--json")
    if done.returncode not in _JUDGED:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    document = json.loads(done.stdout)
    rows = document.get("gates", document)["rows"]
    seconds = {where: stage["seconds"] for where, stage in document.get("stages", {}).items()}
    return {"exit_code": done.returncode, "rows": rows, "seconds": seconds}


def without_network(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words where there is no network, at the repository's root."""
    return subprocess.run(
        [*_ALONE, sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def gate_table(data: dict[str, Any]) -> tuple[Any, ...]:
    """Header and rows of the table, every gate of all students and how their commands ended; and lines below.

    The lines are of the first student, by limits that it cannot keep.
    """
    students = data["students"]
    rows = []
    for places in zip(*(found["rows"] for found in students.values()), strict=True):
        first = places[0]
        cells = (f"{row['found']}: {row['verdict']}" for row in places)
        rows.append((_flag(first), first["subject"], first["required"], *cells))
    codes = (str(found["exit_code"]) for found in students.values())
    rows.append(("exit code", "-", "-", *codes))
    lines = [
        f"- {_flag(row)} {row['required']}: {row['found']}, {row['verdict']}, exit code {judged['exit_code']}"
        for judged in data["stricter"]
        for row in judged["rows"]
    ]
    below = ("", f"The student of {next(iter(students))}, by other limits:", "", *lines)
    return ("gate", "of", "required", *students), rows, *below


def _flag(row: dict[str, Any]) -> str:
    return str(row["gate"]).replace("_", "-")
