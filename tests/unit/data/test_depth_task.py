"""Tasks of lm-eval as questions: read from a stand-in for it, and, where it is installed, beside itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import pytest

from compressor.core.errors import DependencyError, UnsupportedError, UsageError
from compressor.data import depth_task, lm_eval_tasks
from compressor.data.depth_task import is_of_lm_eval, read_task, require_task, task_sha256
from compressor.data.multiple_choice import encode
from compressor.models.adapter import ModelAdapter
from compressor.pruning.depth import DepthMeasure
from tests.tiny_models import make_model, make_tokenizer, save_checkpoint

ROWS = [
    {"q": "the old river keeps", "choices": ["silence", "a stone", "winter morning"], "gold": 2},
    {"q": "every letter finds", "choices": ["the garden", "paper"], "gold": 0},
    {"q": "north of the window", "choices": ["copper turns", "seven", "one answer"], "gold": 1},
]


class StandInTask:
    """A task as lm-eval makes them, as far as it is used here."""

    OUTPUT_TYPE = "multiple_choice"

    def __init__(self, rows: Sequence[dict[str, Any]], *, also_alone: bool = False) -> None:
        self.config = SimpleNamespace(task="stand-in")
        self._rows, self._also_alone = rows, also_alone
        self.instances: list[Any] = []

    def set_fewshot_seed(self, seed: int) -> None:
        self.seed = seed

    def build_all_requests(self) -> None:
        for number, row in enumerate(self._rows):
            pairs = [(f"Question: {row['q']}\nAnswer:", f" {choice}") for choice in row["choices"]]
            pairs += [("", answer) for _, answer in pairs] if self._also_alone else []
            self.instances += [SimpleNamespace(doc_id=number, doc=row, args=pair) for pair in pairs]

    def process_results(self, doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
        likelihoods = [likelihood for likelihood, _ in results[: len(doc["choices"])]]
        golds = doc["gold"] if isinstance(doc["gold"], list) else [doc["gold"]]
        return {"acc": float(likelihoods.index(max(likelihoods)) in golds)}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A module in lm-eval's place, with these tasks by name."""
    tasks: dict[str, Any] = {}

    class TaskManager:
        all_tasks = property(lambda _self: list(tasks))

        def load_task_or_group(self, name: str) -> dict[str, Any]:
            found = tasks[name]
            if isinstance(found, Exception):
                raise found
            return found if isinstance(found, dict) else {name: found}

    package, module, templates = map(ModuleType, ("lm_eval", "lm_eval.tasks", "lm_eval.utils"))
    templates.env = jinja2.Environment()  # type: ignore[attr-defined]  # noqa: S701 - as lm-eval makes it
    package.utils = templates  # type: ignore[attr-defined]
    module.TaskManager = TaskManager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", module)
    for user in (depth_task, lm_eval_tasks):
        monkeypatch.setattr(user, "require_lm_eval", lambda: None)
    depth_task._of_lm_eval.cache_clear()
    return tasks


def test_files_and_names_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("arc").write_text("")
    assert [is_of_lm_eval(task) for task in ("winogrande", "my/task.yaml", "a.yml")] == [True] * 3
    assert [is_of_lm_eval(task) for task in ("arc", "q.jsonl", "my/questions")] == [False] * 3


@pytest.mark.parametrize("also_alone", [False, True])
def test_prompts_answers_and_the_right_one_are_lm_evals(
    stand_in: dict[str, Any], *, also_alone: bool
) -> None:
    stand_in["one"] = StandInTask(ROWS, also_alone=also_alone)
    found = read_task("one")
    assert [asked.right for asked in found] == [row["gold"] for row in ROWS]
    expected = [
        tuple((f"Question: {row['q']}\nAnswer:", f" {choice}") for choice in row["choices"]) for row in ROWS
    ]
    assert [asked.answers for asked in found] == expected
    assert found[1].where == "stand-in, document 1"


def test_white_space_before_an_answer_is_its_own(stand_in: dict[str, Any]) -> None:
    stand_in["one"] = task = StandInTask(ROWS[:1])
    task.build_all_requests()
    for request in task.instances:
        request.args = ("A: ", request.args[1].strip())
    task.build_all_requests = lambda: None  # type: ignore[method-assign]
    assert read_task("one")[0].answers[1] == ("A:", " a stone")


def test_a_group_is_all_of_its_tasks(stand_in: dict[str, Any]) -> None:
    stand_in["both"] = {"group": {"first": StandInTask(ROWS[:2]), "second": StandInTask(ROWS[2:])}}
    assert len(read_task("both")) == len(ROWS)


def test_the_fingerprint_follows_the_questions(stand_in: dict[str, Any], tmp_path: Path) -> None:
    stand_in.update(one=StandInTask(ROWS), same=StandInTask(ROWS))
    other = [*ROWS[:2], {**ROWS[2], "gold": 0}]
    stand_in["other"] = StandInTask(other)
    assert task_sha256("one") == task_sha256("same") != task_sha256("other")


def free_text(tasks: dict[str, Any]) -> None:
    tasks["one"] = StandInTask(ROWS)
    tasks["one"].OUTPUT_TYPE = "generate_until"


REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "free text": (UnsupportedError, "multiple-choice questions only", free_text),
    "two right answers": (
        UnsupportedError,
        "not one right answer",
        lambda tasks: tasks.update(one=StandInTask([{**ROWS[0], "gold": [0, 1]}])),
    ),
    "unknown": (UsageError, "knows no task", lambda tasks: tasks.update(won=StandInTask(ROWS))),
    "out of reach": (UsageError, "cannot load", lambda tasks: tasks.update(one=OSError("no network"))),
    "empty": (UsageError, "no question", lambda tasks: tasks.update(one=StandInTask([]))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tasks_that_cannot_serve_are_refused(name: str, stand_in: dict[str, Any]) -> None:
    kind, message, prepare = REFUSED[name]
    prepare(stand_in)
    with pytest.raises(kind, match=message):
        read_task("one")


def test_a_task_without_lm_eval_is_refused_with_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DependencyError, match="need lm-eval") as refused:
        require_task("winogrande")
    assert refused.value.exit_code == 4
    assert "compress-export[lm-eval]" in str(refused.value.hint)


def test_a_definition_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in (depth_task, lm_eval_tasks):
        monkeypatch.setattr(user, "require_lm_eval", lambda: None)
    with pytest.raises(UsageError, match="no such definition"):
        require_task("absent.yaml")


def test_accuracy_is_what_lm_eval_measures(tmp_path: Path) -> None:
    """A task of its own, on a tiny model, by lm-eval's model class; with examples in the prompt."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    rows = [{**row, "gold": number % len(row["choices"])} for number in range(12) for row in ROWS]
    data, definition = tmp_path / "rows.jsonl", tmp_path / "tiny.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    definition.write_text(
        "task: tiny_choices\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\nfewshot_split: test\nnum_fewshot: 1\noutput_type: multiple_choice\n"
        'doc_to_text: "Question: {{q}}\\nAnswer:"\n'
        'doc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc}]\n"
    )
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = make_model(), make_tokenizer()
    checkpoint = save_checkpoint(tmp_path / "model", model)
    questions = [encode(asked, tokenizer) for asked in read_task(str(definition))]
    windows = np.arange(16, dtype=np.int64).reshape(1, 16)
    ours = DepthMeasure(ModelAdapter(model), windows, questions).without_blocks(range(2), {0})[0][0]
    measured = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(checkpoint), device="cpu", batch_size=1),
        tasks=["tiny_choices"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert ours.accuracy == pytest.approx(measured["results"]["tiny_choices"]["acc,none"])
    assert 0 < ours.accuracy < 1


def test_another_file_that_defines_the_same_task_is_not_taken_instead(
    stand_in: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = tmp_path / "own.yaml"
    definition.write_text("task: own\n")
    stand_in["own"] = StandInTask(ROWS)
    manager = SimpleNamespace(
        all_tasks=["own"],
        task_index={"own": SimpleNamespace(yaml_path=tmp_path / "other.yaml")},
        load_task_or_group=lambda name: {name: stand_in[name]},
    )
    monkeypatch.setattr(depth_task, "open_manager", lambda *_: manager)
    with pytest.raises(UsageError, match="another file beside it"):
        read_task(str(definition))
    manager.task_index["own"] = {"yaml_path": str(definition)}
    assert len(read_task(str(definition))) == len(ROWS)


@pytest.mark.usefixtures("stand_in")
def test_a_definition_that_would_run_code_is_refused_before_lm_eval_reads_it(tmp_path: Path) -> None:
    definition = tmp_path / "own.yaml"
    definition.write_text("task: own\ndoc_to_text: !function prompts.ask\n")
    with pytest.raises(UnsupportedError, match="run Python code"):
        require_task(str(definition))
    definition.write_text("task: own\n")
    require_task(str(definition))
