"""The stages of a run, in their order: what each reads, and with which part of the recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.bench_stage import BENCH, BenchStageConfig
from bench.design.comparisons import arm_name, fair_comparisons
from bench.report.results import NotMeasured, Quality
from bench.runtimes.base import ServingRuntime
from compressor.choices.formats import FORMATS, STUDENT_FORMAT, options
from compressor.distillation.correct_stage import CORRECT
from compressor.distillation.distill_stage import DISTILL, GENERATED, STORED_LOGITS
from compressor.distillation.generate_stage import GENERATE
from compressor.evaluation.evaluate_stage import EVALUATE
from compressor.evaluation.record import EvaluationRecord
from compressor.masks.learn_stage import LEARN, learn_config
from compressor.pipeline.preflight import evaluation_config
from compressor.pipeline.running import CORRECTED, TEACHER_GRAPH, Run
from compressor.pipeline.searching import pruning, search_
from compressor.pipeline.summary import details_of
from compressor.planning.disk import teacher_graphs
from compressor.pruning.prune_stage import PRUNE
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Export
from compressor.repair.reconstruct_stage import RECONSTRUCT, ReconstructStageConfig
from compressor.runs.artifact import ModelArtifact, read_artifact
from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig
from exporters.export_stage import export_stage
from exporters.registry import exporter_of, place_of

SIXTEEN_BIT = ("pruned", "reconstructed", "distilled", "sparsified", "repaired", "recovered")


def _prune(run: Run) -> None:
    if run.recipe.mask_tokens():
        learned = learn_config(run.plan.student.dims, run.recipe.masks, run.recipe.distill)
        run.execute(LEARN, learned, run.teacher, "prune", makes="pruned")
        return
    config, others = pruning(run)
    run.execute(PRUNE, config, run.teacher, "prune", makes="pruned", others=others)


def _reconstruct(run: Run) -> None:
    if run.recipe.repair.enabled:
        _repair(run, "reconstruct", of=run.teacher, makes="reconstructed")


def _reconstruct_sparse(run: Run) -> None:
    if run.recipe.repairs_sparse():
        dense = [run.made[name] for name in SIXTEEN_BIT[:3] if name in run.made][-1]
        _repair(run, "reconstruct-sparse", of=dense, makes="repaired")


def _repair(run: Run, part_of: str, *, of: ModelArtifact, makes: str) -> None:
    config = ReconstructStageConfig(
        calibration=run.recipe.repair_calibration(), steps=run.recipe.repair.steps
    )
    run.execute(RECONSTRUCT, config, _student(run), part_of, makes=makes, teacher=of)


def _generate(run: Run) -> None:
    distill = run.recipe.distill
    if distill.generate.tokens and distill.tokens:
        run.execute(GENERATE, distill.generate, run.teacher, "generate", makes=GENERATED)


def _correct(run: Run) -> None:
    distill = run.recipe.distill
    if distill.correction.mode == "first" and distill.tokens:
        run.execute(CORRECT, distill, run.teacher, "correct", makes=CORRECTED)


def _distill(run: Run) -> None:
    if (distill := run.recipe.distill).tokens:
        run.execute(DISTILL, distill, _student(run), "distill", makes="distilled", others=_teaching(run))


def _teaching(run: Run) -> dict[str, ModelArtifact]:
    """What training reads beside student and teacher."""
    others = {GENERATED: run.made[GENERATED]} if GENERATED in run.made else {}
    stored = run.recipe.distill.teacher_logits
    return others | ({STORED_LOGITS: read_artifact(Path(stored))} if stored else {})


def _sparsify(run: Run) -> None:
    recipe = run.recipe
    if recipe.sparsify.pattern is not None:
        config = SparsifyStageConfig(sparsify=recipe.sparsify, calibration=recipe.calibration)
        run.execute(SPARSIFY, config, _student(run), "sparsify", makes="sparsified")


def _recover(run: Run) -> None:
    if run.recipe.recovery_tokens():
        config = RecoverStageConfig(distill=run.recipe.distill, sparsify=run.recipe.sparsify)
        run.execute(RECOVER, config, _student(run), "recover", makes="recovered", others=_teaching(run))


def _student(run: Run) -> ModelArtifact:
    """The 16-bit model that is exported: the last that was made."""
    return [run.made[name] for name in SIXTEEN_BIT if name in run.made][-1]


def _quantize(run: Run) -> None:
    if run.recipe.quantize.fp8:
        config = QuantizeStageConfig(quantize=run.recipe.quantize, calibration=run.recipe.calibration)
        run.execute(QUANTIZE, config, _student(run), "quantize", makes="quantized")


def _export(run: Run) -> None:
    # The 16-bit student is what every other format is compared with, asked for or not.
    for name in dict.fromkeys((STUDENT_FORMAT, *run.recipe.export_formats())):
        source = run.made["quantized"] if FORMATS[name].needs_fp8 else _student(run)
        settings = exporter_of(name).settings(run.recipe.export)
        run.execute(
            export_stage(name), settings, source, "export", makes=f"export {name}", where=place_of(name)
        )


def _evaluate(run: Run) -> None:
    config = evaluation_config(run.recipe, run.teacher.texts)
    models = {"teacher": run.teacher}
    models |= {CORRECTED: run.made[CORRECTED]} if CORRECTED in run.made else {}
    models |= {name: run.made[name] for name in (*SIXTEEN_BIT, "quantized") if name in run.made}
    run.execute(EVALUATE, config, _student(run), "evaluate", makes="evaluation", others=models)


def _bench(run: Run) -> None:
    """Teacher and student through the same runtime, in every precision that both are there in."""
    if not run.recipe.bench.enabled:
        return
    bench, arms = run.recipe.bench, _arms(run)
    if not arms:
        message = f"nothing to benchmark: add one of {', '.join(bench.row.precisions)} to bench.precisions"
        if not bench.reads_checkpoints():
            formats = ", ".join(options()[bench.row.reads].values())
            message = f"no export to benchmark: add one of {formats} to the formats"
        run.console.warn(message)
        run.manifest.update(warnings=(message,))
        return
    config = BenchStageConfig(
        bench=bench,
        comparisons=fair_comparisons(tuple(arms), which=bench.baselines),
        not_measured=_not_measured(run),
        quality=_quality(run),
        shapes={"teacher": run.plan.teacher.dims.to_dict(), "student": run.plan.student.dims.to_dict()},
    )
    run.execute(BENCH, config, _student(run), "bench", makes="bench", where="bench", others=arms)


def _arms(run: Run) -> dict[str, ModelArtifact]:
    """What the runtime executes, by arm: checkpoints, or the exports that it reads."""
    bench, models = run.recipe.bench, {"teacher": run.teacher, "student": _student(run)}
    if bench.row.serves:
        server: ServingRuntime = bench.row.load()
        return {arm_name(name, server.stored_precision(model.path)): model for name, model in models.items()}
    if bench.reads_checkpoints():
        precisions = [name for name in bench.row.precisions if name in bench.precisions]
        return {arm_name(name, own): model for own in precisions for name, model in models.items()}
    arms: dict[str, ModelArtifact] = {}
    for precision, name in teacher_graphs(run.recipe).items():
        settings = exporter_of(name).settings(Export())  # no gate on the teacher's own graph
        graph = f"{TEACHER_GRAPH}{name}"
        arms[arm_name("teacher", precision)] = run.execute(
            export_stage(name), settings, run.teacher, "bench", makes=graph, where=f"stages/{graph}"
        )
        arms[arm_name("student", precision)] = run.made[f"export {name}"]
    return arms


def _quality(run: Run) -> tuple[Quality, ...]:
    """Perplexity of teacher and student, for the plot of quality against speed."""
    models = details_of(run.made["evaluation"], EvaluationRecord).models
    student = [name for name in SIXTEEN_BIT if name in models][-1]
    return tuple(
        Quality(model=name, metric="perplexity", value=models[evaluated].perplexity)
        for name, evaluated in (("teacher", "teacher"), ("student", student))
    )


def _not_measured(run: Run) -> tuple[NotMeasured, ...]:
    if not run.recipe.quantize.fp8:
        return ()
    reason = f"{run.recipe.bench.row.name} does not run the FP8 export, whose speed is unknown"
    return (NotMeasured(what="student FP8", reason=reason),)


# What `--restart-from` takes; `report` writes the model card, which follows every stage.
STEPS: dict[str, Callable[[Run], None]] = {
    "search": search_,
    "prune": _prune,
    "reconstruct": _reconstruct,
    "generate": _generate,
    "correct": _correct,
    "distill": _distill,
    "sparsify": _sparsify,
    "reconstruct-sparse": _reconstruct_sparse,
    "recover": _recover,
    "quantize": _quantize,
    "export": _export,
    "evaluate": _evaluate,
    "bench": _bench,
}
STAGES = (*STEPS, "report")
