"""What a run's benchmark measures: its arms, and what is made of the teacher for them.

Every arm runs in the form that ships: an ONNX graph, a checkpoint, or a TensorRT engine. What the student is
exported as for that, the teacher is too, quantised with the same calibration, so that each has a baseline in
its own precision and the way from the 16-bit teacher to the FP8 student is measured step by step. A 2:4
student has an engine that may use that and a dense twin of the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bench.bench_stage import BENCH, BenchStageConfig, engine_of
from bench.design.comparisons import arm_name, fair_comparisons
from bench.report.results import NotMeasured, Quality
from bench.runtimes.base import ServingRuntime
from compressor.choices.formats import FORMATS
from compressor.choices.runtimes import CHECKPOINT
from compressor.core.errors import VerificationError
from compressor.evaluation.record import EvaluationRecord
from compressor.pipeline.running import Run
from compressor.pipeline.summary import details_of
from compressor.planning.disk import TEACHER_QUANTIZED
from compressor.planning.restart import TEACHER_EXPORT
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.runs.artifact import ModelArtifact
from exporters.export_stage import export_stage
from exporters.registry import exporter_of
from exporters.tensorrt_llm.engine import DENSE_ENGINE, ENGINE

SIXTEEN_BIT = ("pruned", "reconstructed", "distilled", "sparsified", "repaired", "recovered")
TEACHER, STUDENT = "teacher", "student"


@dataclass(kw_only=True)
class Measured:
    """The arms of a benchmark, in the order in which they are measured.

    Attributes:
        artifacts: What is loaded, by arm.
        engines: TensorRT engines that run in an arm's place, by `engine_of` its name.
    """

    artifacts: dict[str, ModelArtifact] = field(default_factory=dict)
    engines: dict[str, ModelArtifact] = field(default_factory=dict)


def student_of(run: Run) -> ModelArtifact:
    """The 16-bit model that is exported: the last that was made."""
    return [run.made[name] for name in SIXTEEN_BIT if name in run.made][-1]


def bench_(run: Run) -> None:
    """Teacher and student through the same runtime, in every precision that both are there in."""
    bench = run.recipe.bench
    if not bench.is_measured:
        return
    measured = arms_of(run)
    if not measured.artifacts:
        message = f"nothing to benchmark: add one of {', '.join(bench.row.precisions)} to bench.precisions"
        if bench.row.reads != CHECKPOINT:
            formats = [name for name, row in FORMATS.items() if row.option == bench.row.reads]
            message = f"no export to benchmark: add one of {', '.join(formats)} to the formats"
        run.console.warn(message)
        run.manifest.update(warnings=(message,))
        return
    config = BenchStageConfig(
        bench=bench,
        comparisons=fair_comparisons(tuple(measured.artifacts), which=bench.baselines),
        not_measured=_not_measured(run, measured),
        quality=_quality(run),
        shapes={TEACHER: run.plan.teacher.dims.to_dict(), STUDENT: run.plan.student.dims.to_dict()},
    )
    others = {**measured.artifacts, **measured.engines}
    run.execute(BENCH, config, student_of(run), "bench", makes="bench", where="bench", others=others)


def arms_of(run: Run) -> Measured:
    """What the runtime executes; exports of the teacher are made where they are not there yet."""
    bench, formats = run.recipe.bench, run.recipe.measured_formats()
    models = {TEACHER: run.teacher, STUDENT: student_of(run)}
    measured = Measured()
    if bench.measures_engines:
        for precision, name in formats.items():
            _add_engines(run, measured, precision, name)
        return measured
    if bench.row.serves:
        server: ServingRuntime = bench.row.load()
        stored = {name: server.stored_precision(model.path) for name, model in models.items()}
        asked = bench.precisions
        measured.artifacts |= {
            arm_name(name, stored[name]): model
            for name, model in models.items()
            if asked is None or stored[name] in asked
        }
    elif bench.row.reads == CHECKPOINT:
        for precision in run.recipe.bench_precisions():
            measured.artifacts |= {arm_name(name, precision): model for name, model in models.items()}
    for precision, name in formats.items():
        measured.artifacts[arm_name(TEACHER, precision)] = _teacher_export(run, name)
        measured.artifacts[arm_name(STUDENT, precision)] = run.made[f"export {name}"]
    return measured


def _add_engines(run: Run, measured: Measured, precision: str, name: str) -> None:
    """Arms of one format: the teacher's engine and the student's, which may be 2:4 and then has two."""
    teacher, student = _teacher_export(run, name), run.made[f"export {name}"]
    pattern = run.recipe.sparsify.pattern
    has_twin = FORMATS[name].has_dense_twin and (student.path / DENSE_ENGINE).is_dir()
    arms = [
        (arm_name(TEACHER, precision), run.teacher, teacher, ENGINE),
        (arm_name(STUDENT, precision), student_of(run), student, DENSE_ENGINE if has_twin else ENGINE),
    ]
    if has_twin:
        arms.append((arm_name(STUDENT, f"{precision}+{pattern}"), student_of(run), student, ENGINE))
    for arm, model, export, directory in arms:
        measured.artifacts[arm] = model
        measured.engines[engine_of(arm)] = _engine(export, directory)


def _engine(export: ModelArtifact, directory: str) -> ModelArtifact:
    """The engine in an export's directory, with the export's records of its files."""
    start = f"{directory}/"
    files = {
        name.removeprefix(start): record for name, record in export.files.items() if name.startswith(start)
    }
    if not files:
        raise VerificationError(
            "this export holds no engine to measure",
            where=str(export.path),
            expected=directory,
            hint="build it: run the same command with --restart-from export where trtllm-build is",
        )
    return replace(export, path=export.path / directory, files=files)


def _teacher_export(run: Run, name: str) -> ModelArtifact:
    """The teacher in one of the student's formats; no accuracy gate is held against it."""
    export = run.recipe.export.model_copy(update={"int4_min_top1": None})
    settings = exporter_of(name).settings(export)
    source = _teacher_quantized(run) if FORMATS[name].needs_fp8 else run.teacher
    makes = f"{TEACHER_EXPORT}{name}"
    return run.execute(export_stage(name), settings, source, "bench", makes=makes, where=f"stages/{makes}")


def _teacher_quantized(run: Run) -> ModelArtifact:
    """The teacher with FP8 scales of the student's calibration text."""
    if TEACHER_QUANTIZED not in run.made:
        config = QuantizeStageConfig(quantize=run.recipe.quantize, calibration=run.recipe.calibration)
        where = f"stages/{TEACHER_QUANTIZED}"
        run.execute(QUANTIZE, config, run.teacher, "bench", makes=TEACHER_QUANTIZED, where=where)
    return run.made[TEACHER_QUANTIZED]


def _quality(run: Run) -> tuple[Quality, ...]:
    """Perplexity of teacher and student, for the plot of quality against speed."""
    models = details_of(run.made["evaluation"], EvaluationRecord).models
    student = [name for name in SIXTEEN_BIT if name in models][-1]
    return tuple(
        Quality(model=name, metric="perplexity", value=models[evaluated].perplexity)
        for name, evaluated in ((TEACHER, TEACHER), (STUDENT, student))
    )


def _not_measured(run: Run, measured: Measured) -> tuple[NotMeasured, ...]:
    has_fp8 = any(arm.startswith(arm_name(STUDENT, "fp8")) for arm in measured.artifacts)
    if has_fp8 or not run.recipe.quantize.fp8:
        return ()
    reason = f"{run.recipe.bench.row.name} does not run the FP8 export, whose speed is unknown"
    return (NotMeasured(what="student FP8", reason=reason),)
