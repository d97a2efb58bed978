"""What a run's exports compute: their perplexity and their agreement with the student, as they are stored."""

from __future__ import annotations

from bench.design.grid import grid_of
from compressor.choices.formats import FORMATS, Format
from compressor.core.errors import UsageError
from compressor.evaluation.evaluate_stage import EVALUATE, EvaluateStageConfig
from compressor.evaluation.exported import runtimes_of
from compressor.models.config.class_defaults import value_of
from compressor.pipeline.measured import STUDENT, student_of
from compressor.pipeline.running import Run
from compressor.recipe.recipe import Recipe

EXPORTED = "evaluate-exports"
NOT_EXECUTED = "not executed"


def evaluate_exports(run: Run, config: EvaluateStageConfig) -> None:
    """Measure every graph of the run that this machine executes, beside the student, on the same text.

    One that could not be executed when it was verified is left out, with a warning.
    """
    graphs = {}
    for name in run.recipe.executed_formats():
        export = run.made[f"export {name}"]
        if export.details.get("status") == NOT_EXECUTED:
            run.console.warn(f"{name} is not evaluated: its verification could not execute it here")
        else:
            graphs[name] = export
    others = {STUDENT: student_of(run), **graphs}
    config = config.model_copy(update={"runtimes": runtimes_of(others.values())})
    where = f"stages/{EXPORTED}"
    run.execute(EVALUATE, config, others[STUDENT], "evaluate", makes=EXPORTED, where=where, others=others)


def require_executable(recipe: Recipe) -> None:
    """Refuse (UsageError) to evaluate exports of which none is a graph that is executed here."""
    if recipe.evaluate.exports and not recipe.executed_formats():
        raise UsageError(
            "none of the exports can be evaluated, so this option has no effect",
            where="--eval-exports",
            expected=f"one of {', '.join(name for name, row in FORMATS.items() if row.executor)}",
            found=", ".join(recipe.export_formats()),
            hint="add one of them to --formats, or leave --eval-exports out",
        )


def require_positions(recipe: Recipe, config: dict[str, object]) -> None:
    """Refuse (UsageError) what is longer than the graphs of a model of this config will read.

    These are sequences that its exports are evaluated on, and requests of the benchmark.
    """
    limit = value_of(config, "max_position_embeddings")
    limited = [name for name in recipe.executed_formats() if _ends_with_context(FORMATS[name])]
    if limited and recipe.evaluate.seq_len > limit:
        raise UsageError(
            "the sequences to evaluate are longer than an export's graph will read",
            where="--eval-seq-len",
            expected=f"at most {limit:,} tokens, for {', '.join(limited)}",
            found=f"{recipe.evaluate.seq_len:,} tokens",
            hint=f"use --eval-seq-len {limit}, or leave --eval-exports out",
        )
    formats = recipe.measured_formats().values()
    longest = max(grid_of(recipe.bench), key=lambda cell: cell.isl + cell.osl)
    if longest.isl + longest.osl > limit and any(_ends_with_context(FORMATS[name]) for name in formats):
        raise UsageError(
            "the longest requests to measure are longer than an export's graph will read",
            where="--isl-osl, --preset",
            expected=f"at most {limit:,} tokens of input and output, for {', '.join(formats)}",
            found=f"{longest.isl}/{longest.osl}",
            hint="shorten --isl-osl, or choose another --runtime",
        )


def _ends_with_context(row: Format) -> bool:
    return row.executor is not None and row.executor.ends_with_context
