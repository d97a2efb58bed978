"""Removed layers by loss and by a task: against plain transformers with layers deleted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor import api
from compressor.cli.main import invoke
from compressor.core.errors import UsageError, VerificationError
from compressor.data.multiple_choice import encode, read_questions
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.planning.depth import (
    curve_sizes,
    depth_passes,
    num_block_passes,
    require_depth,
    require_removal,
)
from compressor.pruning.depth import DepthMeasure
from compressor.pruning.depth_record import DEPTH_FILE, PAGE_FILE, Measured, best_position
from compressor.pruning.plan import PLAN_FILE, read_plan
from compressor.recipe.recipe import Calibration, Environment, Prune
from tests.tiny_models import make_model, make_tokenizer, save_checkpoint

NUM_LAYERS = 5
WINDOWS = np.random.default_rng(0).integers(0, 320, (3, 24)).astype(np.uint32)
WORDS = ("river", "stone", "old garden", "winter", "a machine", "no")


def model_of(model_type: str = "llama", **fields: Any) -> Any:
    return make_model(model_type, num_hidden_layers=NUM_LAYERS, **fields)


@torch.no_grad()
def logits_without(model: Any, removed: tuple[int, ...], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the model with layers taken out of the list of modules, and their windows of the config."""
    layers, types = model.model.layers, getattr(model.config, "layer_types", None)
    kept = [index for index in range(len(layers)) if index not in removed]
    model.model.layers = torch.nn.ModuleList(layers[index] for index in kept)
    model.config.num_hidden_layers = len(kept)
    if types:
        model.config.layer_types = [types[index] for index in kept]
    logits: torch.Tensor = model(ids, use_cache=False).logits.double()
    model.model.layers, model.config.num_hidden_layers = layers, len(layers)
    if types:
        model.config.layer_types = types
    return logits


def loss_without(model: Any, removed: tuple[int, ...], windows: np.ndarray = WINDOWS) -> float:
    """Mean negative log-likelihood of every token that has one before it."""
    total, count = 0.0, 0
    for window in windows:
        ids = torch.from_numpy(window.astype("int64"))[None]
        log_p = logits_without(model, removed, ids)[0, :-1].log_softmax(-1)
        total -= log_p.gather(1, ids[0, 1:, None]).sum().item()
        count += len(window) - 1
    return total / count


def block(start: int, size: int) -> tuple[int, ...]:
    return tuple(range(start, start + size))


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {}),
        ("phi3", {}),
        ("qwen3", {"tie_word_embeddings": False}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ],
)
def test_every_block_costs_what_deleting_it_by_hand_costs(model_type: str, fields: dict[str, Any]) -> None:
    model = model_of(model_type, **fields)
    found = DepthMeasure(ModelAdapter(model), WINDOWS).without_blocks(range(NUM_LAYERS), {0, 1, 2, 4})
    assert {size: len(without) for size, without in found.items()} == {0: 1, 1: 5, 2: 4, 4: 2}
    for size, without in found.items():
        for start, measured in enumerate(without):
            expected = loss_without(model, block(start, size))
            assert measured.loss == pytest.approx(expected, rel=1e-5)
            assert measured.accuracy is None


def test_greedy_removal_takes_the_best_single_layer_every_time() -> None:
    model = model_of()
    measure = DepthMeasure(ModelAdapter(model), WINDOWS)
    first = measure.without_blocks(range(NUM_LAYERS), {1})[1]
    found = measure.greedy(3, first=first)

    removed: tuple[int, ...] = ()
    for removal in found:
        rest = [index for index in range(NUM_LAYERS) if index not in removed]
        losses = {index: loss_without(model, (*removed, index)) for index in rest}
        assert removal.layer == min(losses, key=losses.__getitem__)
        assert removal.without.loss == pytest.approx(losses[removal.layer], rel=1e-5)
        removed = (*removed, removal.layer)


def task_file(path: Path, count: int = 12) -> Path:
    generator = np.random.default_rng(1)
    lines = []
    for number in range(count):
        choices = [WORDS[index] for index in generator.permutation(len(WORDS))[: 2 + number % 3]]
        answer = int(generator.integers(len(choices)))
        asked = f"The {WORDS[number % 4]} is" + "  " * (number % 2)
        lines.append(json.dumps({"question": asked, "choices": choices, "answer": answer}))
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def accuracy_without(model: Any, removed: tuple[int, ...], file: Path) -> float:
    """Every answer run by itself, without padding, its tokens' log-likelihoods added up."""
    tokenizer, right = make_tokenizer(), 0
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    for row in rows:
        likelihoods = []
        for choice in row["choices"]:
            asked = row["question"].rstrip()
            space = row["question"][len(asked) :] or " "
            before = len(tokenizer.encode(asked))
            ids = torch.tensor([tokenizer.encode(asked + space + choice)])
            log_p = logits_without(model, removed, ids)[0].log_softmax(-1)
            likelihoods.append(
                sum(log_p[place - 1, ids[0, place]].item() for place in range(before, ids.shape[1]))
            )
        right += int(np.argmax(likelihoods)) == row["answer"]
    return right / len(rows)


def test_accuracy_without_every_block_equals_brute_force(tmp_path: Path) -> None:
    model, file = model_of(), task_file(tmp_path / "task.jsonl")
    questions = [encode(question.asked(), make_tokenizer()) for question in read_questions(file)]
    found = DepthMeasure(ModelAdapter(model), WINDOWS[:1], questions).without_blocks(
        range(NUM_LAYERS), {0, 1, 3}
    )
    accuracies = set()
    for size, without in found.items():
        for start, measured in enumerate(without):
            expected = accuracy_without(model, block(start, size), file)
            assert measured.accuracy == pytest.approx(expected)
            accuracies.add(expected)
    assert len(accuracies) > 2  # the task tells blocks apart


def test_the_least_missed_block_has_the_best_accuracy_then_the_least_loss() -> None:
    measured = [
        Measured(loss=2.0, accuracy=0.5),
        Measured(loss=3.0, accuracy=0.75),
        Measured(loss=2.5, accuracy=0.75),
        Measured(loss=2.5, accuracy=0.75),
    ]
    assert best_position(measured) == 2
    assert best_position([Measured(loss=loss) for loss in (2.0, 1.0, 1.5)]) == 1


def test_a_loss_that_is_not_finite_names_the_layers() -> None:
    model = model_of()
    model.model.layers[4].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(VerificationError, match="without layers: 0"):
        DepthMeasure(ModelAdapter(model), WINDOWS).without_blocks(range(NUM_LAYERS), {1})


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("deep") / "model", model_of())


def calibrated(text: Path) -> Calibration:
    return Calibration(data=str(text), size=6, seq_len=32)


@pytest.mark.parametrize("removal", ["contiguous", "scattered"])
def test_prune_removes_and_reports_what_it_measured(
    removal: Any, deep: Path, tiny_text: Path, tmp_path: Path
) -> None:
    task = task_file(tmp_path / "task.jsonl")
    settings = Prune(
        shape={"num_hidden_layers": 3},
        importance="random",
        depth=removal,
        depth_importance="task",
        depth_task=str(task),
        depth_size=4,
        depth_curve=(1, 2),
    )
    execution = api.Execution(environment=Environment(dtype="float32"))
    calibration = calibrated(tiny_text)
    out = tmp_path / "out"
    made = api.prune(str(deep), out, settings=settings, calibration=calibration, execution=execution)
    record = json.loads((out / DEPTH_FILE).read_text())
    removed = record["removed_layers"]
    assert removed == made.details["removed_layers"]
    assert read_plan(out / PLAN_FILE).layers == tuple(sorted({*range(NUM_LAYERS)} - {*removed}))
    assert record["num_sequences"] == 4
    assert record["num_questions"] == 12
    assert made.details["calibration"]["windows"] == 4  # random scores read no text

    model = model_of()
    curves = {curve["size"]: curve["without"] for curve in record["curves"]}
    assert set(curves) == {1, 2}
    for size, without in curves.items():
        expected = [
            accuracy_without(model, block(start, size), task) for start in range(NUM_LAYERS - size + 1)
        ]
        assert [found["accuracy"] for found in without] == pytest.approx(expected)
    if removal == "contiguous":
        ranks = [(-found["accuracy"], found["loss"]) for found in curves[2]]
        assert removed == list(block(ranks.index(min(ranks)), 2))
    else:
        assert sorted(found["layer"] for found in record["removals"]) == removed
        final = record["removals"][-1]["without"]["accuracy"]
        assert final == pytest.approx(accuracy_without(model, tuple(removed), task))
    page = (out / PAGE_FILE).read_text()
    assert page.count("<svg") == (2 if removal == "contiguous" else 4)
    best = curves[2][[found["loss"] for found in curves[2]].index(min(found["loss"] for found in curves[2]))]
    assert f"loss {best['loss']:.4f}</title>" in page
    assert "<script" not in page
    assert invoke(["verify", str(out), "--source", str(deep), "-q"]) == 0


def test_settings_of_a_measurement_that_is_not_made_decide_nothing(
    deep: Path, tiny_text: Path, tmp_path: Path
) -> None:
    """A student that an earlier version made has none of these fields in its record."""
    settings = Prune(shape={"num_hidden_layers": 3}, importance="random")
    made = api.prune(str(deep), tmp_path / "out", settings=settings, calibration=calibrated(tiny_text))
    assert not [name for name in made.inputs["config"]["prune"] if name.startswith("depth_")]
    assert not (made.path / DEPTH_FILE).exists()


def test_curves_are_in_proportion_to_the_model() -> None:
    sizes = {layers: curve_sizes(Prune(), layers) for layers in (32, 80, 30, 16, 3)}
    assert sizes == {
        32: (1, 2, 8, 16),
        80: (1, 2, 8, 16),
        30: (1, 2, 8, 15),
        16: (1, 4, 8),
        3: (1, 2),
    }
    assert curve_sizes(Prune(depth_curve=(4, 1, 4)), 32) == (1, 4)


def test_planned_passes_are_those_that_are_made() -> None:
    """Counted by a layer that counts its calls."""
    model, calls = model_of(), [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    for layer in model.model.layers:
        layer.register_forward_hook(count)
    dims = dims_of_config(model.config.to_dict())
    measure = DepthMeasure(ModelAdapter(model), WINDOWS[:1])
    first = measure.without_blocks(range(NUM_LAYERS), {0, 1, 2})[1]
    student = dims.with_shape(num_hidden_layers=3)
    settings = Prune(depth_importance="loss", depth_curve=(1,), depth="contiguous")
    assert calls[0] == depth_passes(settings, dims, student) * NUM_LAYERS
    assert calls[0] == NUM_LAYERS + num_block_passes(NUM_LAYERS, 1) + num_block_passes(NUM_LAYERS, 2)

    calls[0] = 0
    measure.without_blocks(range(NUM_LAYERS), {1})
    measure.greedy(2, first=first)
    scattered = Prune(depth_importance="loss", depth_curve=(1,), depth="scattered")
    assert calls[0] == depth_passes(scattered, dims, student) * NUM_LAYERS
    assert depth_passes(Prune(), dims, student) == 0


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no effect": ({"depth_curve": (1,)}, 3, "have no effect"),
    "no layer goes": ({"depth_importance": "loss"}, NUM_LAYERS, "keeps every layer"),
    "no task": ({"depth_importance": "task"}, 3, "file of questions"),
    "a task unused": ({"depth_importance": "loss", "depth_task": "t.jsonl"}, 3, "file of questions"),
    "no such task": ({"depth_importance": "task", "depth_task": "none.jsonl"}, 3, "no such file"),
    "a block of all": ({"depth_importance": "loss", "depth_curve": (1, NUM_LAYERS)}, 3, "as large as"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused_before_any_work(name: str, deep: Path) -> None:
    fields, layers, message = REFUSED[name]
    dims = dims_of_config(read_config(deep))
    with pytest.raises(UsageError, match=message):
        require_depth(Prune(**fields), dims, dims.with_shape(num_hidden_layers=layers))


@pytest.mark.parametrize("command", ["plan", "prune"])
def test_a_way_to_remove_no_layers_is_refused(
    command: str, deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "out")] if command == "prune" else []
    words = [command, str(deep), "--depth-removal", "scattered", *out, "-q", "--shape"]
    assert invoke([*words, "hidden_size=48"]) == 2
    assert "how layers are removed has no effect" in capsys.readouterr().err


def test_a_way_to_remove_layers_serves_whoever_removes_some() -> None:
    dims = dims_of_config(model_of().config.to_dict())
    some, none = dims.with_shape(num_hidden_layers=3), dims.with_shape(hidden_size=48)
    require_removal(Prune(depth="scattered"), dims, [none, some])
    require_removal(Prune(), dims, [none])


def test_plan_refuses_what_prune_would(deep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(deep), "--shape", "hidden_size=48", "--depth-importance", "loss", "-q"]
    assert invoke(words) == 2
    assert "keeps every layer" in capsys.readouterr().err


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "one choice": '{"question": "q", "choices": ["a"], "answer": 0}',
    "no such choice": '{"question": "q", "choices": ["a", "b"], "answer": 2}',
    "a letter": '{"question": "q", "choices": ["a", "b"], "answer": "A"}',
    "an empty answer": '{"question": "q", "choices": ["a", " "], "answer": 0}',
    "an empty question": '{"question": "", "choices": ["a", "b"], "answer": 0}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_line_that_is_no_question_is_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text(task_file(file, count=2).read_text().rstrip() + "\n" + BROKEN[name] + "\n")
    with pytest.raises(UsageError, match=r"task\.jsonl:3"):
        read_questions(file)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text("\n")
    with pytest.raises(UsageError, match="no question"):
        read_questions(file)


def test_a_question_that_is_none_to_the_tokenizer_is_refused_before_any_scoring(
    deep: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tokenizer's normaliser nothing may be left of an answer."""
    monkeypatch.setattr("compressor.pruning.prune_stage._scores", lambda *_: pytest.fail("scored first"))
    monkeypatch.setattr("compressor.data.multiple_choice._ids", lambda text, _tokenizer: [0] * ("is" in text))
    settings = Prune(
        shape={"num_hidden_layers": 3},
        depth_importance="task",
        depth_task=str(task_file(tmp_path / "task.jsonl")),
    )
    with pytest.raises(UsageError, match="leaves nothing of a question"):
        api.prune(str(deep), tmp_path / "out", settings=settings, calibration=calibrated(tiny_text))
