"""Targets by outcome through the library and the command line: measured, kept, used again, and checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor import api
from compressor.api.layer_times import key_of, measure_layers, times_directory
from compressor.choices.runtimes import RUNTIMES
from compressor.core.console import Console
from compressor.core.hardware import GPUS
from compressor.models.dims import Dims, flops_per_token
from compressor.models.presets import PRESETS
from compressor.planning.layer_times import LayerTimes, SizeTimes, keep_times, read_times, sizes_to_measure
from compressor.planning.outcome import Promise, Question
from compressor.planning.plan import Plan
from compressor.recipe.recipe import Recipe, load_recipe
from tests.integration.command import command_here, succeed_here, write_recipe
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.bench.toy_runtimes import LAYERS

SMOLLM = PRESETS["smollm2-135m"].dims


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take a hundred times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A runtime that takes as many seconds for a token as a model has layers, and a place for its times."""
    monkeypatch.setitem(RUNTIMES, LAYERS.name, LAYERS)
    monkeypatch.chdir(tmp_path)
    return LAYERS.name


def asked(**fields: object) -> Recipe:
    values = {"bench.precisions": "fp16", "bench.isl_osl": "8/4", "bench.batch_sizes": "1"}
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return load_recipe(None, {"model": "smollm2-135m", **values, **named})


def planned(recipe: Recipe, out_dir: Path, **options: Any) -> tuple[Plan, Promise]:
    made = api.plan(recipe, out_dir, **options)
    assert isinstance(made, Plan)
    assert made.promise is not None
    return made, made.promise


def test_times_that_a_runtime_tells_are_measured_kept_and_predicted_from(toy: str, tmp_path: Path) -> None:
    recipe = asked(bench__runtime=toy, outcome__latency="20s")
    question = Question(
        goal="latency", target=20.0, precision="fp16", runtime=toy, batch_size=1, isl=8, osl=4
    )
    measure_layers(recipe, question, SMOLLM, tmp_path / "out", Console())
    assert [file.parent for file in tmp_path.rglob("layer_times*")] == [tmp_path / ".compress-export"]
    key = key_of(question, SMOLLM)
    assert key is not None
    times = read_times(times_directory(recipe, tmp_path / "out"), key)
    assert times is not None
    for layers in (30, 12):
        assert times.step_s(SMOLLM.with_shape(num_hidden_layers=layers)) == pytest.approx(layers)
    made, kept = planned(recipe, tmp_path / "out")
    assert kept.source == "layer times"
    assert key.machine in kept.basis
    assert made.student.dims.num_hidden_layers == 20
    assert (kept.predicted, kept.of_teacher) == (pytest.approx(20.0), pytest.approx(30.0))


def times_of(recipe: Recipe, out_dir: Path, runtime: str) -> LayerTimes:
    """A table, kept where the recipe's is, by which time is proportional to layers and hidden size."""
    question = Question(
        goal="speedup", target=2.0, precision="fp16", runtime=runtime, batch_size=1, isl=8, osl=4
    )
    key = key_of(question, SMOLLM)
    assert key is not None
    sizes = [
        SizeTimes(
            hidden_size=dims.hidden_size,
            intermediate_size=dims.intermediate_size,
            depths=(10, 20),
            prefill_s=(dims.hidden_size * 1.0, dims.hidden_size * 1.0),
            step_s=(dims.hidden_size * 1.0, dims.hidden_size * 1.0),
        )
        for dims in sizes_to_measure(SMOLLM)
    ]
    times = LayerTimes(key=key, sizes=tuple(sizes))
    keep_times(times_directory(recipe, out_dir), times)
    return times


def test_a_plan_takes_the_table_where_it_is_and_a_named_gpu_before_it(toy: str, tmp_path: Path) -> None:
    recipe = asked(bench__runtime=toy, outcome__speedup="1.3x", outcome__layer_times=str(tmp_path / "t"))
    times_of(recipe, tmp_path / "out", toy)
    made, promise = planned(recipe, tmp_path / "out")
    assert promise.source == "layer times"
    # Of the rule's hidden sizes 576 and 432 only the second is 1.3 times narrower.
    assert made.student.dims.hidden_size == 432
    assert promise.predicted == pytest.approx(576 / 432)
    _, elsewhere = planned(recipe, tmp_path / "out", gpu="h100")
    assert (elsewhere.source, elsewhere.runtime, elsewhere.precision) == ("roofline", None, "bf16")


def test_a_run_that_has_begun_keeps_its_student(toy: str, tmp_path: Path) -> None:
    recipe = asked(bench__runtime=toy, outcome__speedup="1.3x")
    out = tmp_path / "out"
    times_of(recipe, out, toy)
    made, promise = planned(recipe, out)
    out.mkdir()
    (out / "plan.json").write_text(json.dumps(made.to_json()))
    shutil.rmtree(tmp_path / ".compress-export")
    again, kept = planned(recipe, out)
    assert (again.student, again.rule, kept) == (made.student, made.rule, promise)
    changed = asked(bench__runtime=toy, outcome__speedup="1.31x")
    times_of(changed, out, toy)
    assert planned(changed, out)[1].target == 1.31
    assert planned(recipe, out, anew=True)[1].source == "layer times"


@pytest.mark.parametrize("goal", ["speedup", "latency"])
def test_a_named_gpu_is_predicted_by_its_datasheet(goal: str, tmp_path: Path) -> None:
    """Llama-3.1-8B at batch 1: every step reads the weights and the cache; a prompt of 8 tokens as well."""
    target = {"speedup": "1.6x", "latency": "3ms"}[goal]
    given = {"model": "llama3.1-8b", f"outcome.{goal}": target, "bench.isl_osl": "8/5"}
    made, promise = planned(load_recipe(None, given), tmp_path, gpu="h100")

    def seconds(dims: Dims) -> tuple[float, float]:
        gpu = GPUS["h100"]
        linear = dims.num_hidden_layers * dims.hidden_size * (80 * 128 + 3 * dims.intermediate_size)
        norms = dims.hidden_size * (2 * dims.num_hidden_layers + 1)
        weights = 2 * (linear + norms + dims.vocab_size * dims.hidden_size)  # one of two matrices is read
        cached = 2 * 2 * dims.num_hidden_layers * 8 * 128
        assert 8 * flops_per_token(dims) / gpu.bf16_flops_per_s < weights / gpu.memory_bytes_per_s
        prompt, step = weights + 8 * cached, weights + (8 + 2) * cached
        return prompt / gpu.memory_bytes_per_s, step / gpu.memory_bytes_per_s

    teacher, student = seconds(PRESETS["llama3.1-8b"].dims), seconds(made.student.dims)
    if goal == "latency":
        assert promise.predicted == pytest.approx(student[1])
        assert promise.predicted <= 0.003 < promise.of_teacher == pytest.approx(teacher[1])
    else:
        whole = (teacher[0] + 4 * teacher[1]) / (student[0] + 4 * student[1])
        assert promise.predicted == pytest.approx(whole)
        assert promise.predicted >= 1.6


def test_the_command_line_shows_the_promise_and_refuses_two_sizes() -> None:
    words = ("plan", "llama3.1-8b", "--target-memory", "6GiB", "--target-context-length", 8192)
    promise = succeed_here(*words)["promise"]
    assert (promise["goal"], promise["target"], promise["context_length"]) == ("memory", 6 * 2**30, 8192)
    assert promise["predicted"] <= promise["target"] < promise["of_teacher"]
    shown = command_here(*words).stdout
    assert f"{promise['predicted'] / 2**30:.3f} GiB" in shown
    done = command_here(*words, "--target", "4b")
    assert (done.returncode, "--target, --target-memory" in done.stderr) == (2, True)
    named = command_here("plan", "smollm2-135m", "--target-latency", "1ms", "--gpu", "h1000")
    assert (named.returncode, "unknown GPU" in named.stderr) == (2, True)


def run_recipe(directory: Path, text: Path, **sections: Any) -> Path:
    """A recipe of nothing but a cut by chance, with an outcome for its target."""
    model = make_model(hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    return write_recipe(
        directory / "recipe.yaml",
        *(save_checkpoint(directory / "model", model), text),
        prune={"importance": "random", "shape": None},
        distill={"tokens": 0},
        repair={"method": "off"},
        export={"formats": ["huggingface"]},
        **sections,
    )


def test_a_run_counts_the_memory_that_it_promised(tiny_text: Path, tmp_path: Path) -> None:
    limit = 2 * 500_000 + 2 * 30 * 512  # bytes; keys and values of 4 layers x 2 heads x 16, for 60 tokens
    outcome = {"memory": limit, "batch_size": 2, "context_length": 30}
    recipe = run_recipe(tmp_path, tiny_text, outcome=outcome)
    summary = succeed_here("run", "--config", recipe, "-o", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "student" / "model.safetensors")
    layers = summary["plan"]["student"]["dims"]["num_hidden_layers"]
    size = sum(tensor.nbytes for tensor in tensors.values()) + 60 * 2 * layers * 2 * 16 * 2
    assert summary["promise"]["value"] == size == summary["plan"]["promise"]["predicted"]
    assert (summary["promise"]["verdict"], size <= limit) == ("kept", True)
    assert not any("promised" in warning for warning in summary["warnings"])
    assert "| kept |" in (tmp_path / "out" / "README.md").read_text()
    assert command_here("verify", tmp_path / "out").returncode == 0


def test_a_speed_without_a_benchmark_is_refused(tiny_text: Path, tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path, tiny_text, outcome={"latency": 2.5}, bench={"runtime": "none"})
    done = command_here("run", "--config", recipe, "-o", tmp_path / "out", "--json")
    assert done.returncode == 2
    assert "held against the run's benchmark, which is skipped" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_measures_its_layers_and_its_student_and_keeps_its_promise(
    toy: str, tiny_text: Path, tmp_path: Path
) -> None:
    bench = {
        "runtime": toy,
        "precisions": ["fp16"],
        "isl_osl": [[8, 4]],
        "batch_sizes": [1],
        "max_pairs": 5,
    }
    recipe = run_recipe(tmp_path, tiny_text, outcome={"speedup": "1.9x"}, bench=bench)
    words = ("run", "--config", recipe, "-o", tmp_path / "out")
    summary = succeed_here(*words)
    [file] = (tmp_path / ".compress-export").glob("layer_times*")
    promise, measured = summary["plan"]["promise"], summary["promise"]
    ratio = 4 / summary["plan"]["student"]["dims"]["num_hidden_layers"]
    assert (promise["source"], promise["predicted"]) == ("layer times", pytest.approx(ratio))
    assert (measured["verdict"], measured["value"]) == ("kept", pytest.approx(ratio))
    assert not [text for text in summary["warnings"] if "promised" in text]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| 1.90x | {ratio:.2f}x (layer times) |" in card
    file.unlink()
    again = succeed_here(*words)
    assert again["plan"] == summary["plan"]
    assert not file.exists()
