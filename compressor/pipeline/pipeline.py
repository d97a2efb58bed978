"""The whole run, stage by stage: every stage reads one directory and writes the next."""

from __future__ import annotations

from pathlib import Path

from compressor.core.console import Console
from compressor.core.hardware import describe, resolve_dtype
from compressor.core.processes import is_main, on_main
from compressor.models.checkpoint import read_config
from compressor.models.dims import Dims
from compressor.models.source import ModelSource, open_checkpoint
from compressor.models.tokenizer import load_tokenizer
from compressor.pipeline.preflight import (
    require_expressible,
    require_texts,
    require_tokenizer,
    require_trainable,
    require_windows,
)
from compressor.pipeline.promise import promise_warnings
from compressor.pipeline.report import CARD_FILE, write_model_card
from compressor.pipeline.running import Run, Start, redo_in_run, require_disk
from compressor.pipeline.steps import STAGES, STEPS
from compressor.pipeline.summary import RunSummary, summary_of
from compressor.planning.plan import Plan, require_prunable
from compressor.recipe.recipe import Recipe, dump_recipe
from compressor.runs.artifact import ModelArtifact, write_json, write_text
from compressor.runs.manifest import PLAN_FILE, RECIPE_FILE, open_run_directory
from compressor.runs.stage import StageContext
from exporters.registry import require_tools


def run_pipeline(
    recipe: Recipe, source: ModelSource, plan: Plan, out_dir: Path, console: Console, start: Start
) -> RunSummary:
    """Compress, export, verify and measure the model at `source`; returns the summary printed by `--json`."""
    check_choices(recipe, plan.teacher.dims)
    first = start.restart_from
    restart = frozenset(STAGES[STAGES.index(first) :]) if first else frozenset()
    with open_run_directory(out_dir, resume=start.resume, overwrite=start.overwrite) as manifest:
        for name in manifest.changed_files():
            console.warn(f"{name} is not as this run wrote it; it is written again")
        on_main(lambda: require_texts(recipe, console))
        on_main(lambda: require_disk(plan.disk, out_dir, restart=restart))
        manifest.update(hardware=describe())
        teacher = on_main(
            lambda: open_checkpoint(
                source,
                out_dir / "stages",
                dtype=resolve_dtype(recipe.dtype),
                tokenizer=recipe.tokenizer,
                trust_remote_code=recipe.trust_remote_code,
                on_warning=console.warn,
            )
        )
        for student in plan.possible_students():
            require_expressible(recipe, read_config(teacher.path), student)
        run = Run(
            recipe=recipe,
            plan=plan,
            out_dir=out_dir,
            console=console,
            manifest=manifest,
            teacher=teacher,
            restart=restart,
        )
        on_main(lambda: _check_reading(recipe, teacher))
        for name, step in STEPS.items():
            step(run)
            if name == "prune" and (restart or not (out_dir / RECIPE_FILE).is_file()):
                _record_choices(run)
        on_main(lambda: write_model_card(out_dir, summary(run)))
        _check_contents(run, check=start.check)
        result = on_main(lambda: summary(run))
        if plan.promise and result.promise:
            for warning in promise_warnings(plan.promise, result.promise):
                console.warn(warning)
        _record_choices(run)
        manifest.add_files((RECIPE_FILE, PLAN_FILE, CARD_FILE))
        return on_main(lambda: summary(run))


def check_choices(recipe: Recipe, teacher: Dims) -> None:
    """Refuse, before anything is written, what no model and no text could make right."""
    require_prunable(teacher)
    if recipe.bench.enabled:
        recipe.bench.row.require_executable()
    require_tools(recipe.export_formats(), engine=recipe.export.tensorrt_llm.require_engine)
    require_trainable(recipe)


def _check_reading(recipe: Recipe, teacher: ModelArtifact) -> None:
    """Refuse, before any stage, a tokenizer or texts that one of them could not use."""
    trust = recipe.trust_remote_code
    require_tokenizer(teacher.path, trust_remote_code=trust)
    require_windows(recipe, load_tokenizer(teacher.path, trust_remote_code=trust), teacher.texts)


def _check_contents(run: Run, *, check: bool) -> None:
    """Nothing was left to do: compare every file of the finished run with what was recorded of it."""
    if run.has_worked:
        return
    sizes = [record["bytes"] for artifact in run.reused for record in artifact.files.values()]
    what = f"{len(sizes)} files of a finished run, {sum(sizes):,} bytes"
    if not check:
        run.console.warn(f"--no-check: the contents of {what}, are not compared with their sha256")
        return
    context = StageContext(
        console=run.console, seed=0, device="cpu", dtype="float32", redo=redo_in_run, checked=run.checked
    )
    for artifact in run.reused:
        on_main(lambda artifact=artifact: context.check_contents(artifact))  # type: ignore[misc]
    run.console.info(f"compared with their sha256: {what}")


def _record_choices(run: Run) -> None:
    """What to run again, and what was planned.

    Written after the first stage, for a run that is interrupted; but over another recipe's record only
    when every stage accepted this one, or was told to start again.
    """
    if not is_main():
        return
    write_text(run.out_dir / RECIPE_FILE, dump_recipe(run.recipe))
    write_json(run.out_dir / PLAN_FILE, run.plan.to_json())
    run.manifest.add_files((RECIPE_FILE, PLAN_FILE))


def summary(run: Run) -> RunSummary:
    """The run's result, read from what the stages recorded."""
    return summary_of(
        run.out_dir, recipe=run.recipe, plan=run.plan, manifest=run.manifest.record, made=run.at
    )
