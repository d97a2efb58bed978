"""`--runtime auto`: what executes the models on machines with other programs, libraries and devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor import api
from compressor.choices import runtimes
from compressor.choices.runtimes import RUNTIME_CHOICES, RUNTIMES
from compressor.cli.main import invoke
from compressor.core import hardware
from compressor.core.errors import DependencyError, UnsupportedError, UsageError
from compressor.pipeline.measurable import require_measurable, require_programs
from compressor.pipeline.pipeline import check_choices
from compressor.planning import runtime_choice
from compressor.planning.plan import Plan
from compressor.planning.runtime_choice import choose_runtime, with_runtime
from compressor.recipe.recipe import Bench, Recipe, load_recipe

ENGINES = ("trtllm-bench", "trtllm-build")


def recipe_with(**fields: object) -> Recipe:
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return load_recipe(None, {"model": "llama3.1-8b", "target": "4b", **named})


def check_bench(settled: Recipe) -> None:
    require_measurable(settled)
    require_programs(settled)


class Machine:
    """This machine, with other programs on PATH and another opinion about GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self._patch, self._bin = monkeypatch, directory / "bin"
        self._bin.mkdir()
        monkeypatch.setenv("PATH", str(self._bin))
        self.has(gpu=False)

    def has(self, *programs: str, gpu: bool) -> None:
        for name in programs:
            (self._bin / name).write_text("#!/bin/sh\n")
            (self._bin / name).chmod(0o755)
        for name in ("torch_sees_gpu", "driver_sees_gpu"):
            self._patch.setattr(runtime_choice, name, lambda: gpu)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("programs", "gpu", "expected"),
    [
        ((), False, ("onnxruntime", "cpu", False)),
        ((), True, ("torch", "cuda", False)),
        (("vllm",), True, ("vllm", "cuda", False)),
        (("trtllm-bench",), True, ("tensorrt-llm", "cuda", False)),
        (("trtllm-bench", "vllm"), True, ("tensorrt-llm", "cuda", False)),
        (ENGINES, True, ("tensorrt-llm", "cuda", True)),
        (ENGINES, False, ("tensorrt-llm", "cuda", True)),
        (("trtllm-build",), True, ("torch", "cuda", False)),
    ],
)
def test_auto_takes_what_the_machine_has(
    machine: Machine, programs: tuple[str, ...], gpu: bool, expected: tuple[object, ...]
) -> None:
    machine.has(*programs, gpu=gpu)
    chosen = choose_runtime(recipe_with())
    assert (chosen.name, chosen.device, chosen.engines) == expected
    assert chosen.is_assumed
    for program in programs[:1] if expected[0] != "torch" else ():
        assert f"{program} is on PATH" in chosen.reason


def test_nothing_at_all_is_refused_with_what_to_install(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install onnxruntime-genai, or use --runtime none"):
        choose_runtime(recipe_with())


@pytest.mark.parametrize(
    ("programs", "gpu", "fp8", "expected"),
    [
        ((), False, False, {"huggingface", "tensorrt-llm", "onnx", "onnx-int4"}),
        ((), True, False, {"huggingface", "tensorrt-llm", "onnx-int4"}),
        ((), True, True, {"huggingface", "huggingface-fp8", "tensorrt-llm-fp8", "onnx-int4"}),
        (
            ENGINES,
            True,
            True,
            {"huggingface", "huggingface-fp8", "tensorrt-llm", "tensorrt-llm-fp8", "onnx-int4"},
        ),
    ],
)
def test_default_formats_follow_what_is_measured(
    machine: Machine, programs: tuple[str, ...], gpu: bool, fp8: bool, expected: set[str]
) -> None:
    machine.has(*programs, gpu=gpu)
    recipe = recipe_with(quantize__fp8=fp8)
    settled = with_runtime(recipe, choose_runtime(recipe))
    assert set(settled.export_formats()) == expected
    assert with_runtime(settled, choose_runtime(settled)) == settled


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("bf16",)),
        ({"quantize__fp8": True}, ("bf16", "fp8")),
        ({"dtype": "float16", "sparsify__pattern": "2:4"}, ("fp16", "fp16+2:4")),
        ({"bench__precisions": "int4,fp32"}, ("fp32",)),
    ],
)
def test_precisions_on_a_gpu_are_those_of_the_student(
    machine: Machine, fields: dict[str, object], expected: tuple[str, ...]
) -> None:
    machine.has(gpu=True)
    recipe = recipe_with(**fields)
    assert with_runtime(recipe, choose_runtime(recipe)).bench_precisions() == expected


def test_a_named_runtime_is_planned_where_it_is_and_refused_in_a_run(machine: Machine) -> None:
    recipe = recipe_with(bench__runtime="tensorrt-llm")
    chosen = choose_runtime(recipe)
    assert (chosen.engines, chosen.is_assumed) == (True, False)
    assert "which this one has not" in chosen.machine
    made = api.plan(recipe)
    assert isinstance(made, Plan)
    with pytest.raises(DependencyError, match="trtllm-bench is not on PATH"):
        check_choices(with_runtime(recipe, chosen), made.teacher.dims)


def test_engines_are_measured_or_not_as_a_recipe_says(machine: Machine) -> None:
    machine.has(*ENGINES, gpu=True)
    assert not choose_runtime(recipe_with(bench__engines=False)).engines
    with pytest.raises(UsageError, match="torch runs no engines"):
        choose_runtime(recipe_with(bench__engines=True, bench__runtime="torch"))


def test_a_runtime_of_engines_alone_is_taken_only_by_name(machine: Machine) -> None:
    machine.has("llm_bench", "llm_build", gpu=True)
    assert choose_runtime(recipe_with()).name == "torch"
    recipe = recipe_with(bench__runtime="tensorrt-edge-llm", quantize__fp8=True)
    chosen = choose_runtime(recipe)
    assert (chosen.name, chosen.device, chosen.engines) == ("tensorrt-edge-llm", "cuda", True)
    settled = with_runtime(recipe, chosen)
    assert settled.measured_formats() == {"fp16": "tensorrt-edge-llm", "fp8": "tensorrt-edge-llm-fp8"}
    with pytest.raises(UsageError, match="runs nothing but engines"):
        choose_runtime(recipe_with(bench__runtime="tensorrt-edge-llm", bench__engines=False))


def test_cells_must_fit_the_device_engine(machine: Machine) -> None:
    machine.has("llm_bench", gpu=True)

    def refused(**fields: object) -> str:
        recipe = recipe_with(bench__runtime="tensorrt-edge-llm", **fields)
        settled = with_runtime(recipe, choose_runtime(recipe))
        with pytest.raises((UsageError, DependencyError)) as error:
            check_bench(settled)
        return str(error.value)

    short = {"bench__isl_osl": [[64, 32]], "bench__concurrency": "1"}
    assert "--edge-llm-max-batch-size 4" in refused(**{**short, "bench__concurrency": "4"})
    assert "--edge-llm-max-kv-cache 5024" in refused(**{**short, "bench__isl_osl": [[1024, 4000]]})
    assert "--edge-llm-max-input-len 2048" in refused(**{**short, "bench__isl_osl": [[2048, 8]]})
    assert "llm_build" in refused(**short)
    machine.has("llm_build", gpu=True)
    recipe = recipe_with(bench__runtime="tensorrt-edge-llm", **short)
    check_bench(with_runtime(recipe, choose_runtime(recipe)))


def test_a_recipe_of_another_device_is_refused(machine: Machine) -> None:
    with pytest.raises(UsageError, match="another device than this machine has"):
        choose_runtime(recipe_with(bench__device="cuda", bench__runtime="torch"))


def test_a_plan_says_which_machine_it_assumes(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "llama3.1-8b", "--target", "4b"]
    assert invoke(words) == 0
    here = capsys.readouterr().out
    assert "benchmark     onnxruntime on cpu of this machine" in here
    assert "assumed       the benchmark runs on this machine" in here
    assert invoke([*words, "--gpu", "h200"]) == 0
    there = capsys.readouterr().out
    assert "torch on cuda of a machine with NVIDIA H200" in there
    assert "assumed       " not in there
    assert invoke([*words, "--runtime", "none"]) == 0
    assert "benchmark     none" in capsys.readouterr().out


def test_choices_are_the_table_between_auto_and_none() -> None:
    assert list(RUNTIME_CHOICES) == ["auto", *RUNTIMES, "none"]


def test_a_machine_without_a_driver_has_no_gpu_and_asks_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "driver_sees_gpu", lambda: False)
    monkeypatch.setattr(hardware, "resolve_device", lambda device: pytest.fail("torch was asked"))
    assert not hardware.torch_sees_gpu()


def test_series_of_a_serving_benchmark_are_refused_in_a_recipe_as_on_the_command_line(
    machine: Machine, tmp_path: Path
) -> None:
    machine.has("vllm", gpu=True)
    with pytest.raises(UsageError, match="no effect") as caught:
        choose_runtime(recipe_with(bench__runtime="vllm", bench__num_series=3))
    assert caught.value.where == "bench.num_series (--bench-series)"
    choose_runtime(recipe_with(bench__runtime="vllm"))
    choose_runtime(recipe_with(bench__runtime="torch", bench__num_series=3))
    selection = api.Selection(models=(), runtime=RUNTIMES["vllm"], precisions=(), reason="named")
    with pytest.raises(UsageError, match="no effect"):
        api.bench(selection, tmp_path / "speed", settings=Bench(num_series=3))


def test_a_precision_without_kernels_here_is_refused_before_the_run(machine: Machine) -> None:
    fields = {"bench__runtime": "torch", "quantize__fp8": True}
    for precision, refused in (("bf16", False), ("fp8", True), ("bf16+2:4", True)):
        recipe = recipe_with(**fields, bench__precisions=precision, sparsify__pattern="2:4")
        settled = with_runtime(recipe, choose_runtime(recipe))
        if refused:
            with pytest.raises(UnsupportedError, match="needs a GPU of compute capability"):
                require_programs(settled)
        else:
            require_programs(settled)
