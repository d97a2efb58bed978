"""Tasks by lm-eval itself: names and shots of the sets, scores, shares, interruptions, gates; no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import SecurityError
from scipy import stats

from compressor.choices.tasks import TASK_SETS, expand_tasks
from compressor.core.errors import NetworkError, UnsupportedError, UsageError
from compressor.data.lm_eval_tasks import defining_file, open_manager
from compressor.evaluation import task_stage
from compressor.evaluation.harness import fingerprint_of_tasks, load_leaves
from compressor.quantization.reader import SimulatedFp8Linear
from tests.extras.local_tasks import NUM_ITEMS, write_tasks
from tests.integration.command import command_here, digests, succeed_here, write_recipe
from tests.records import record_again
from tests.tiny_models import edit_json, make_model, save_checkpoint

lm_eval = pytest.importorskip("lm_eval")
PUBLISHED = {
    "winogrande": 5, "arc_challenge": 25, "mmlu": 5, "hellaswag": 10, "gsm8k": 5, "truthfulqa_mc2": 0,
}  # fmt: skip


@pytest.fixture(scope="session")
def task_dir(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "own", tiny_text)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "student", make_model(seed=1))


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_stage, "UNIT_ITEMS", 10)


def definition_of(manager: Any, name: str) -> dict[str, Any]:
    """A task's own YAML as lm-eval ships it, what it includes among it."""
    file = Path(manager.task_index[name].yaml_path)

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    found = yaml.load(file.read_text(), Loader)  # noqa: S506 - a safe loader
    included = found.get("include")
    if included:
        return {**yaml.load((file.parent / included).read_text(), Loader), **found}  # noqa: S506
    return dict(found)


def test_the_published_set_is_known_to_lm_eval_by_its_names_and_shots() -> None:
    assert TASK_SETS["published"].tasks == PUBLISHED
    manager = open_manager(None)
    for name, shots in {**PUBLISHED, "ifeval": None}.items():
        assert name in manager.all_tasks
        own = definition_of(manager, name).get("num_fewshot")
        # A task that sets its shots to 0 takes no others; one that sets another number is overridden.
        assert shots is None or own != 0 or shots == 0, name
    assert definition_of(manager, "truthfulqa_mc2")["num_fewshot"] == 0
    assert definition_of(manager, "ifeval")["num_fewshot"] == 0


def test_headline_metrics_are_metrics_of_their_tasks() -> None:
    manager = open_manager(None)
    for chosen in TASK_SETS.values():
        for name, metric in chosen.headline.items():
            found = definition_of(manager, name)
            listed = found.get("metric_list") or found["aggregate_metric_list"]
            assert metric.partition(",")[0] in {entry["metric"] for entry in listed}


def test_scores_are_lm_evals_own(
    tiny_checkpoint: Path, student: Path, task_dir: Path, tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    words = ("--tasks", "words:2,next_word:0", "--task-dir", task_dir, "--dtype", "float32")
    record = succeed_here("evaluate", tiny_checkpoint, student, *words, "-o", tmp_path / "scores")
    assert record["tasks"]["words"]["shots"] == 2
    assert record["tasks"]["words"]["num_items"] == 2 * NUM_ITEMS
    assert record["tasks"]["words"]["parts"] == ["next_word", "other_word"]
    assert record["tasks"]["words"]["metric"] == "acc_norm,none"
    for name, path in (("tiny-llama", tiny_checkpoint), ("student", student)):
        for task, shots, parts in (
            ("next_word", 0, ["next_word"]),
            ("words", 2, ["next_word", "other_word"]),
        ):
            expected = lm_eval.simple_evaluate(
                model=HFLM(pretrained=str(path), dtype="float32", device="cpu", batch_size=4),
                tasks=parts,
                num_fewshot=shots,
                task_manager=TaskManager(include_path=str(task_dir), include_defaults=False),
                bootstrap_iters=0,
            )["results"]
            for metric in ("acc,none", "acc_norm,none"):
                mean = sum(expected[part][metric] for part in parts) / len(parts)
                assert record["models"][name]["tasks"][task][metric] == pytest.approx(mean)
    items = {
        name: json.loads((tmp_path / "scores" / "items" / name / "next_word-0shot.json").read_text())
        for name in ("tiny-llama", "student")
    }
    first, own = (items[name]["acc_norm,none"] for name in ("tiny-llama", "student"))
    lost = sum(a > b for a, b in zip(first, own, strict=True))
    won = sum(a < b for a, b in zip(first, own, strict=True))
    paired = next(one for one in record["paired"] if one["task"] == "next_word")
    assert (paired["only_first"], paired["only_this"]) == (lost, won)
    assert paired["p_value"] == pytest.approx(stats.binomtest(lost, lost + won).pvalue)
    assert paired["low"] <= paired["difference"] <= paired["high"]


def test_shares_together_are_the_whole(
    tiny_checkpoint: Path, student: Path, task_dir: Path, tmp_path: Path, small_units: None
) -> None:
    words = ("evaluate", tiny_checkpoint, student, "--tasks", "words:1", "--task-dir", task_dir)
    whole = succeed_here(*words, "-o", tmp_path / "whole" / "scores")
    shared = (*words, "-o", tmp_path / "shared" / "scores")
    counts = [succeed_here(*shared, "--shard", f"{number}/3") for number in (2, 1, 3)]
    assert [found["left"] for found in counts] == [8, 4, 0]  # 2 models, 2 tasks, 24 items in units of 10
    assert not (tmp_path / "shared" / "scores").exists()
    assert succeed_here(*shared) == whole
    parts = ("evaluation.json", "items")
    of_whole, of_shared = (digests(tmp_path / name / "scores", parts) for name in ("whole", "shared"))
    assert of_whole == of_shared
    assert len(of_whole) == 5


def test_an_interrupted_measurement_goes_on_where_it_was(
    tiny_checkpoint: Path, task_dir: Path, tmp_path: Path, small_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", tiny_checkpoint, "--tasks", "next_word", "--task-dir", task_dir, "--limit", 23)
    calls: list[range] = []
    genuine = task_stage.measure_items

    def counting(model: Any, leaf: Any, indices: range, **settings: Any) -> Any:
        calls.append(indices)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return genuine(model, leaf, indices, **settings)

    monkeypatch.setattr(task_stage, "measure_items", counting)
    assert command_here(*words, "-o", tmp_path / "scores").returncode == 130
    resumed = succeed_here(*words, "-o", tmp_path / "scores")
    assert calls == [range(10), range(10, 20), range(10, 20), range(20, 23)]
    monkeypatch.setattr(task_stage, "measure_items", genuine)
    assert succeed_here(*words, "-o", tmp_path / "again") == resumed


def test_a_quantised_model_is_measured_as_it_computes(
    tiny_checkpoint: Path, tiny_text: Path, task_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = tmp_path / "quantized"
    calibration = ("--calib-data", tiny_text, "--calib-size", 2, "--calib-seq-len", 32)
    succeed_here("quantize", tiny_checkpoint, "--fp8", *calibration, "-o", quantized)
    wrapped: list[Any] = []
    genuine = task_stage.wrap_model
    monkeypatch.setattr(
        task_stage,
        "wrap_model",
        lambda model, *more, **named: genuine(wrapped.append(model) or model, *more, **named),
    )
    words = ("--tasks", "next_word", "--task-dir", task_dir)
    succeed_here("evaluate", tiny_checkpoint, quantized, *words, "-o", tmp_path / "scores")
    rounded = [any(isinstance(part, SimulatedFp8Linear) for part in model.modules()) for model in wrapped]
    assert rounded == [False, True]


def test_a_template_of_a_task_reaches_only_the_document(task_dir: Path) -> None:
    """lm-eval's own function, once a manager of tasks was opened here."""
    from lm_eval.utils import apply_template

    open_manager(task_dir, ["next_word"])
    assert apply_template("{{ question | regex_replace('a', 'b') }}", {"question": "a"}) == "b"
    with pytest.raises(SecurityError):
        apply_template("{{ cycler.__init__.__globals__.os.getcwd() }}", {})


def test_the_file_that_defines_a_task_is_known(task_dir: Path) -> None:
    manager = open_manager(task_dir, ["next_word"])
    assert defining_file(manager, "next_word") == (task_dir / "next_word.yaml").resolve()


def test_tasks_that_would_run_code_are_refused(task_dir: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(task_dir, tmp_path / "own"))
    text = (own / "next_word.yaml").read_text()
    (own / "next_word.yaml").write_text(f"{text}process_docs: !function steps.first\n")
    with pytest.raises(UnsupportedError, match="run Python code"):
        fingerprint_of_tasks(own, trust_code=False)
    assert fingerprint_of_tasks(own, trust_code=True) != fingerprint_of_tasks(task_dir, trust_code=False)
    with pytest.raises(UsageError, match="no tasks"):
        fingerprint_of_tasks(tmp_path, trust_code=False) if not list(tmp_path.rglob("*.yaml")) else (
            fingerprint_of_tasks(tmp_path / "nowhere", trust_code=False)
        )


def test_what_cannot_be_measured_is_named(tiny_checkpoint: Path, task_dir: Path, tmp_path: Path) -> None:
    done = command_here("evaluate", tiny_checkpoint, "--tasks", "hellaswga", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "hellaswag" in done.stderr
    with pytest.raises(NetworkError, match="arc_easy"):
        load_leaves(open_manager(None), {"arc_easy": 0}, limit=None)


def test_a_run_measures_tasks_and_is_gated_by_them(
    tiny_checkpoint: Path, tiny_text: Path, task_dir: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        evaluate={"tasks": ["words:1"], "task_dir": str(task_dir)},
        export={"formats": ["huggingface"]},
        gates={"tasks": {"words": 0.0}},
    )
    out = tmp_path / "out"
    summary = succeed_here("run", "--config", recipe, "-o", out)
    assert list(summary["tasks"]["models"]) == ["teacher", "distilled"]
    (row,) = summary["gates"]["rows"]
    score = summary["tasks"]["models"]["distilled"]["tasks"]["words"]["acc_norm,none"]
    assert (row["verdict"], row["value"]) == ("PASS", score)
    assert f"{100 * score:.2f}" in (out / "README.md").read_text()
    assert command_here("gate", out, "--tasks", "words=1").returncode == 6
    assert command_here("gate", out, "--task-ratio", "1000").returncode == 6
    assert command_here("gate", out, "--tasks", "arc_easy=0.1").returncode == 2
    succeed_here("verify", out)
    tasks = out / "stages" / "tasks"
    item = next((tasks / "items" / "distilled").glob("*.json"))
    scores = json.loads(item.read_text())["acc_norm,none"]
    edit_json(item, **{"acc_norm,none": [1 - scores[0], *scores[1:]]})
    record_again(tasks)
    done = command_here("verify", out)
    assert done.returncode == 8
    assert "a recorded figure is not what was found" in done.stderr


def test_expansion() -> None:
    assert expand_tasks(("published", "piqa:3", "boolq")) == {**PUBLISHED, "piqa": 3, "boolq": None}
