"""The published comparison from one command, on stand-ins for the builders and benchmarks: not NVIDIA's.

They build and measure nothing; what is tested is what is made, in which pairs it is measured, and what the
reports say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import edge_llm_stand_in
from tests.integration.command import command_here, succeed_here, write_recipe
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.bench.runtimes import stand_in_llm_bench, stand_in_trtllm_bench, stand_in_vllm
from tests.unit.exporters.edge_llm.test_exporter import builder
from tests.unit.exporters.tensorrt_llm import stand_in_builder

BENCH = {
    "runtime": "auto",
    "isl_osl": [[6, 4]],
    "concurrency": "2,2:4",
    "num_requests": 4,
    "max_pairs": 5,
    "timeout_s": 60,
}
SHORT: dict[str, Any] = {
    "distill": {"tokens": 0},
    "repair": {"method": "off"},
    "quantize": {"fp8": True},
    "export": {"formats": ["huggingface", "huggingface-fp8", "tensorrt-llm", "tensorrt-llm-fp8"]},
}
COMPARED = {
    ("teacher-bf16", "student-bf16"),
    ("teacher-fp8", "student-fp8"),
    ("teacher-bf16", "teacher-fp8"),
    ("student-bf16", "student-fp8"),
    ("teacher-bf16", "student-fp8"),
}
Run = Callable[..., tuple[Path, dict[str, Any], list[list[str]]]]


@pytest.fixture
def run(tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with stand-ins on PATH: its directory, its summary, and the calls of the benchmark."""

    def start(*, has_vllm: bool = False, **sections: Any) -> Any:
        tools = tmp_path / "tools"
        tools.mkdir()
        calls = tools / "calls.jsonl"
        calls.touch()
        if has_vllm:
            stand_in_vllm.install(tools, behaviour="is noisy")
        else:
            stand_in_trtllm_bench.install(tools)
            stand_in_builder.install(tools)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        teacher = save_checkpoint(tmp_path / "teacher", make_model().to(torch.bfloat16))
        recipe = write_recipe(
            tmp_path / "recipe.yaml",
            *(teacher, tiny_text),
            **{**SHORT, **sections},
            bench=BENCH,
        )
        summary = succeed_here("run", "--config", recipe, "-o", tmp_path / "out")
        return tmp_path / "out", summary, [json.loads(line) for line in calls.read_text().splitlines()]

    return start


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_four_engines_are_built_and_each_has_its_own_baseline(run: Run) -> None:
    out, summary, calls = run()
    runtime = summary["plan"]["runtime"]
    assert (runtime["name"], runtime["engines"]) == ("tensorrt-llm", True)
    assert "trtllm-bench is on PATH and so is trtllm-build" in runtime["reason"]
    bench = summary["bench"]
    pairs = {(one["baseline"], one["candidate"]): one["cells"] for one in bench["comparisons"]}
    assert set(pairs) == COMPARED
    planned = summary["plan"]["bench"]
    assert [arm["name"] for arm in planned["arms"]] == [arm["id"] for arm in bench["arms"]]
    assert [tuple(pair) for pair in planned["comparisons"]] == list(pairs)
    for (baseline, candidate), cells in pairs.items():
        sizes = [(cell["batch_size"], cell["candidate_batch_size"]) for cell in cells]
        is_same_model = baseline.partition("-")[0] == candidate.partition("-")[0]
        assert sizes == ([(2, None), (4, None)] if is_same_model else [(2, None), (2, 4)])
    engines = {option(words, "--engine_dir") for words in calls}
    assert engines == {
        str(out / place / "engine")
        for place in (
            *("stages/teacher-tensorrt-llm", "stages/teacher-tensorrt-llm-fp8"),
            *("exports/tensorrt-llm", "exports/tensorrt-llm-fp8"),
        )
    }
    assert all((Path(engine) / "rank0.engine").is_file() for engine in engines)
    quantized = json.loads((out / "stages/teacher-quantize/artifact.json").read_text())["inputs"]
    student = json.loads((out / "stages/quantize/artifact.json").read_text())["inputs"]
    assert quantized["config"] == student["config"]
    assert quantized["data"] == student["data"]
    report = (out / "bench" / "report.md").read_text()
    for step in ("teacher → student", "bf16 → fp8"):
        assert step in report
    assert "requests in flight" in report
    assert "student-fp8 : teacher-bf16" in (out / "README.md").read_text()
    assert command_here("verify", out).returncode == 0


def test_a_sparse_student_is_measured_beside_its_dense_twin(run: Run) -> None:
    out, summary, calls = run(
        sparsify={"pattern": "2:4", "method": "magnitude", "tokens": 0},
        quantize={"fp8": False},
        export={"formats": ["huggingface", "tensorrt-llm"]},
    )
    pairs = {(one["baseline"], one["candidate"]) for one in summary["bench"]["comparisons"]}
    assert pairs == {
        ("teacher-bf16", "student-bf16"),
        ("student-bf16", "student-bf16+2:4"),
        ("teacher-bf16", "student-bf16+2:4"),
    }
    engines = {Path(option(words, "--engine_dir")).relative_to(out).as_posix() for words in calls}
    assert engines == {
        *("stages/teacher-tensorrt-llm/engine", "exports/tensorrt-llm/engine"),
        "exports/tensorrt-llm/engine-dense",
    }


def test_a_server_of_checkpoints_has_the_same_arms(run: Run) -> None:
    out, summary, _ = run(has_vllm=True)
    bench = summary["bench"]
    assert {arm["runtime"] for arm in bench["arms"]} == {"vllm"}
    assert {(one["baseline"], one["candidate"]) for one in bench["comparisons"]} == COMPARED
    assert [arm["name"] for arm in summary["plan"]["bench"]["arms"]] == [arm["id"] for arm in bench["arms"]]
    quant = [
        json.loads((out / place / "hf_quant_config.json").read_text())["quantization"]["quant_algo"]
        for place in ("stages/teacher-huggingface-fp8", "exports/huggingface-fp8")
    ]
    assert quant == ["FP8", "FP8"]
    assert command_here("verify", out).returncode == 0


def test_a_device_measures_its_own_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, text = tmp_path / "tools", tmp_path / "text.txt"
    calls = stand_in_llm_bench.install(tools)
    builder(tools, "builds")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    teacher = save_checkpoint(tmp_path / "teacher", make_model(head_dim=64).to(torch.bfloat16))
    text.write_text("It was a fine day, and the fox ran over the hill to look for mice in the snow.\n" * 60)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        *(teacher, text),
        **{name: SHORT[name] for name in ("distill", "repair")},
        export={
            "formats": ["huggingface", "tensorrt-edge-llm"],
            "edge_llm": {"python": edge_llm_stand_in.install(tmp_path / "edge")},
        },
        bench={**BENCH, "runtime": "tensorrt-edge-llm", "concurrency": "1"},
    )
    summary = succeed_here("run", "--config", recipe, "-o", tmp_path / "out")
    pairs = {(one["baseline"], one["candidate"]) for one in summary["bench"]["comparisons"]}
    assert pairs == {("teacher-fp16", "student-fp16")}
    seen = [json.loads(line) for line in calls.read_text().splitlines()]
    engines = {Path(option(words, "--engineDir")).relative_to(tmp_path / "out").as_posix() for words in seen}
    assert engines == {"stages/teacher-tensorrt-edge-llm/engine", "exports/tensorrt-edge-llm/engine"}
    assert {option(words, "--mode") for words in seen} == {"prefill", "decode"}
    assert command_here("verify", tmp_path / "out").returncode == 0
