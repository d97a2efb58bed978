"""Which graphs a run measures, with stand-ins for the run and its artifacts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compressor.core.console import Console
from compressor.evaluation.evaluate_stage import EvaluateStageConfig
from compressor.pipeline.exported import evaluate_exports
from compressor.recipe.recipe import Recipe, load_recipe
from compressor.runs.artifact import ModelArtifact


def artifact(stage: str, status: str) -> ModelArtifact:
    """A stand-in for an export: its record, without files."""
    return ModelArtifact(
        path=Path(stage),
        stage=stage,
        fingerprint=stage,
        lineage=(stage,),
        num_parameters=1,
        details={"status": status},
    )


FORMATS = {
    "huggingface": "bit-equal",
    "tensorrt-llm": "not executed",
    "onnx": "passed",
    "onnx-fp16": "not executed",
    "onnx-int4": "reported",
}


def recipe_of(**choices: Any) -> Recipe:
    given = {"model": "m", "export.formats": list(FORMATS), "bench.runtime": "none"}
    return load_recipe(None, given | choices)


def test_graphs_are_measured_that_their_verification_executed() -> None:
    calls: list[dict[str, Any]] = []
    console, student = Console(), artifact("prune", "none")
    exports = {f"export {name}": artifact(f"export-{name}", status) for name, status in FORMATS.items()}
    run: Any = SimpleNamespace(
        recipe=recipe_of(**{"evaluate.exports": True}),
        made={"pruned": student, **exports},
        console=console,
        execute=lambda *words, **named: calls.append({"config": words[1], **named}),
    )
    evaluate_exports(run, EvaluateStageConfig(data="t", window=8, size=1))
    (call,) = calls
    assert list(call["others"]) == ["student", "onnx", "onnx-int4"]
    assert list(call["config"].runtimes) == ["onnxruntime"]
    (warning,) = console.warnings
    assert "onnx-fp16 is not evaluated" in warning


def test_without_the_option_no_graph_is_measured() -> None:
    assert recipe_of().executed_formats() == ()
    assert recipe_of(**{"evaluate.exports": True}).executed_formats() == ("onnx", "onnx-fp16", "onnx-int4")
