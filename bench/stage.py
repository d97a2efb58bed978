"""The bench stage: the context's arms, `teacher PRECISION` against `student PRECISION`, into reports."""

from __future__ import annotations

from pathlib import Path

from bench.arms import Arm, Comparison
from bench.measure import run_bench
from bench.report.write import write_reports
from bench.results import NotMeasured
from compressor.artifact import ModelArtifact
from compressor.recipe import Bench, Section
from compressor.stage import Stage, StageContext, StageResult

RUNTIME = "onnxruntime-genai"


class BenchStageConfig(Section):
    """Grid and number of pairs.

    Attributes:
        bench: The recipe's section.
        comparisons: Pairs of names in the context's `others`: baseline, candidate.
        not_measured: What is missing, and why.
    """

    bench: Bench
    comparisons: tuple[tuple[str, str], ...]
    not_measured: tuple[tuple[str, str], ...] = ()


def run(config: BenchStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Measure every comparison and write `results.json` and `report.md`."""
    arms = {name: _arm(name, artifact) for name, artifact in context.others.items()}
    results = run_bench(
        [Comparison(baseline=arms[first], candidate=arms[second]) for first, second in config.comparisons],
        config.bench,
        console=context.console,
        seed=context.seed,
        not_measured=[NotMeasured(what=what, reason=reason) for what, reason in config.not_measured],
    )
    write_reports(results, out_dir)
    return StageResult(
        num_parameters=source.num_parameters, details=results.model_dump(mode="json", by_alias=True)
    )


def arm_name(model: str, precision: str) -> str:
    """How an arm is called: `student-fp32`."""
    return f"{model}-{precision}"


def _arm(name: str, artifact: ModelArtifact) -> Arm:
    model, _, precision = name.rpartition("-")
    return Arm(
        id=name,
        model=model,
        precision=precision,
        path=artifact.path,
        runtime=RUNTIME,
        num_parameters=artifact.num_parameters,
    )


BENCH: Stage[BenchStageConfig] = Stage(name="bench", run=run, libraries=("onnxruntime", "onnxruntime-genai"))
