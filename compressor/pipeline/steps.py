"""The stages of a run, in their order: what each reads, and with which part of the recipe."""

from __future__ import annotations

from collections.abc import Callable

from compressor.choices.formats import FORMATS, STUDENT_FORMAT
from compressor.distillation.distill_stage import DISTILL, DISTILL_PART
from compressor.evaluation.chat_stage import CHAT
from compressor.evaluation.evaluate_stage import EVALUATE
from compressor.evaluation.task_stage import TASKS, task_config
from compressor.masks.learn_stage import LEARN, learn_config
from compressor.pipeline.chatting import chat_config_of
from compressor.pipeline.exported import evaluate_exports
from compressor.pipeline.interleaving import cut_from, interleave, part_config, repair_config
from compressor.pipeline.measured import SIXTEEN_BIT, bench_, student_of
from compressor.pipeline.preflight import evaluation_config
from compressor.pipeline.running import CORRECTED, Run
from compressor.pipeline.searching import pruning, search_
from compressor.pipeline.teaching import correct, generate, teaching
from compressor.planning.cuts import INTERLEAVE
from compressor.pruning.prune_stage import PRUNE
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.repair.quantised_stage import RECONSTRUCT_FP8, ReconstructFp8StageConfig
from compressor.repair.reconstruct_stage import RECONSTRUCT
from compressor.runs.artifact import ModelArtifact
from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig
from exporters.export_stage import export_stage
from exporters.registry import exporter_of, place_of


def _prune(run: Run) -> None:
    if run.recipe.mask_tokens():
        learned = learn_config(run.plan.student.dims, run.recipe.masks, run.recipe.distill)
        run.execute(LEARN, learned, run.teacher, "prune", makes="pruned")
        return
    source = cut_from(run)
    config, others = pruning(run, run.plan.student.dims, source)
    run.execute(PRUNE, config, source, "prune", makes="pruned", others=others)


def _reconstruct(run: Run) -> None:
    if run.recipe.repair.enabled:
        _repair(run, "reconstruct", of=cut_from(run), makes="reconstructed")


def _reconstruct_sparse(run: Run) -> None:
    if run.recipe.repairs_sparse():
        dense = [run.made[name] for name in SIXTEEN_BIT[:3] if name in run.made][-1]
        _repair(run, "reconstruct-sparse", of=dense, makes="repaired")


def _repair(run: Run, part_of: str, *, of: ModelArtifact, makes: str) -> None:
    run.execute(RECONSTRUCT, repair_config(run), student_of(run), part_of, makes=makes, teacher=of)


def _distill(run: Run) -> None:
    distill, cuts, student = run.recipe.distill, run.plan.cuts, student_of(run)
    if cuts:
        last = part_config(run, len(cuts))
        run.execute(DISTILL_PART, last, student, "distill", makes="distilled", others=teaching(run))
    elif distill.tokens:
        run.execute(DISTILL, distill, student, "distill", makes="distilled", others=teaching(run))


def _sparsify(run: Run) -> None:
    recipe = run.recipe
    if recipe.sparsify.pattern is not None:
        config = SparsifyStageConfig(sparsify=recipe.sparsify, calibration=recipe.calibration)
        run.execute(SPARSIFY, config, student_of(run), "sparsify", makes="sparsified")


def _recover(run: Run) -> None:
    if run.recipe.recovery_tokens():
        config = RecoverStageConfig(distill=run.recipe.distill, sparsify=run.recipe.sparsify)
        run.execute(RECOVER, config, student_of(run), "recover", makes="recovered", others=teaching(run))


def _quantize(run: Run) -> None:
    if run.recipe.quantize.fp8:
        config = QuantizeStageConfig(quantize=run.recipe.quantize, calibration=run.recipe.calibration)
        run.execute(QUANTIZE, config, student_of(run), "quantize", makes="quantized")


def _reconstruct_fp8(run: Run) -> None:
    """Exports, evaluation and benchmark take the repaired model in the quantised one's place."""
    if run.recipe.repairs_fp8():
        config = ReconstructFp8StageConfig(calibration=run.recipe.repair_calibration())
        run.execute(
            RECONSTRUCT_FP8,
            config,
            run.made["quantized"],
            "reconstruct-fp8",
            makes="quantized",
            teacher=student_of(run),
        )


def _export(run: Run) -> None:
    # The 16-bit student is what every other format is compared with, asked for or not.
    for name in dict.fromkeys((STUDENT_FORMAT, *run.recipe.export_formats())):
        source = run.made["quantized"] if FORMATS[name].needs_fp8 else student_of(run)
        settings = exporter_of(name).settings(run.recipe.export)
        run.execute(
            export_stage(name), settings, source, "export", makes=f"export {name}", where=place_of(name)
        )


def _evaluate(run: Run) -> None:
    config = evaluation_config(run.recipe, run.teacher.texts)
    models = {"teacher": run.teacher}
    models |= {CORRECTED: run.made[CORRECTED]} if CORRECTED in run.made else {}
    between = (cut.name for cut in run.plan.cuts)
    models |= {name: run.made[name] for name in (*between, *SIXTEEN_BIT, "quantized") if name in run.made}
    student = student_of(run)
    run.execute(EVALUATE, config, student, "evaluate", makes="evaluation", others=models)
    if run.recipe.evaluate.exports:
        evaluate_exports(run, config)
    if run.recipe.evaluate.tasks:
        tasks = task_config(run.recipe.evaluate, trust_code=run.recipe.trust_remote_code)
        others = _released(run)
        run.execute(TASKS, tasks, student, "evaluate", makes="tasks", where="stages/tasks", others=others)
    if run.recipe.evaluate.chat_data is not None:
        chat = chat_config_of(run.recipe, run.teacher.texts)
        run.execute(CHAT, chat, student, "evaluate", makes="chat", where="stages/chat", others=_released(run))


def _released(run: Run) -> dict[str, ModelArtifact]:
    """The teacher, the student and its quantised form, by what the evaluation calls them."""
    last = [name for name in SIXTEEN_BIT if name in run.made][-1]
    released = {"teacher": run.teacher, last: student_of(run)}
    return released | ({"quantized": run.made["quantized"]} if "quantized" in run.made else {})


# What `--restart-from` takes; `report` writes the model card, which follows every stage.
STEPS: dict[str, Callable[[Run], None]] = {
    "search": search_,
    INTERLEAVE: interleave,
    "prune": _prune,
    "reconstruct": _reconstruct,
    "generate": generate,
    "correct": correct,
    "distill": _distill,
    "sparsify": _sparsify,
    "reconstruct-sparse": _reconstruct_sparse,
    "recover": _recover,
    "quantize": _quantize,
    "reconstruct-fp8": _reconstruct_fp8,
    "export": _export,
    "evaluate": _evaluate,
    "bench": bench_,
}
STAGES = (*STEPS, "report")
