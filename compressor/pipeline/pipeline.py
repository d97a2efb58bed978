"""The whole run, stage by stage: every stage reads one directory and writes the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.bundle.bom import BOM_FILE
from compressor.bundle.lineage import LINEAGE_FILE
from compressor.bundle.sums import write_sums
from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.core.hardware import describe, resolve_dtype
from compressor.core.processes import on_main
from compressor.data.lm_eval_tasks import require_lm_eval
from compressor.evaluation.task_stage import require_tasks
from compressor.models.checkpoint import read_config
from compressor.models.dims import Dims
from compressor.models.source import ModelSource, open_checkpoint
from compressor.models.tokenizer import load_tokenizer
from compressor.pipeline.bundling import DOCUMENTS, write_origins
from compressor.pipeline.chatting import require_chat_choices
from compressor.pipeline.exported import require_executable, require_positions
from compressor.pipeline.measurable import require_programs
from compressor.pipeline.page.write import write_page
from compressor.pipeline.preflight import (
    require_expressible,
    require_texts,
    require_tokenizer,
    require_trainable,
    require_windows,
)
from compressor.pipeline.preflight_plan import planned_ahead
from compressor.pipeline.promise import promise_warnings
from compressor.pipeline.report import CARD_FILE, write_model_card
from compressor.pipeline.running import Run, Start, require_disk
from compressor.pipeline.slice_run import run_preflight
from compressor.pipeline.steps import STAGES, STEPS
from compressor.pipeline.summary import PAGE_FILE, RunSummary, summary_of
from compressor.planning.plan import Plan, require_prunable
from compressor.planning.restart import TEACHER_EXPORT, redo_in_run
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ModelArtifact
from compressor.runs.cleaned import is_cleaned
from compressor.runs.manifest import PLAN_FILE, RECIPE_FILE, open_run_directory
from compressor.runs.stage import StageContext
from exporters.registry import check_files, require_tools


def run_pipeline(
    recipe: Recipe,
    source: ModelSource,
    plan: Plan,
    out_dir: Path,
    console: Console,
    start: Start,
    *,
    ahead: Sequence[tuple[Recipe, Plan]] | None = None,
) -> RunSummary:
    """Compress, export, verify and measure the model at `source`; returns the summary printed by `--json`.

    `ahead` are the recipes and plans that a preflight tries first; by default this one, if its plan says so.
    """
    check_choices(recipe, plan.teacher.dims)
    first = start.restart_from
    restart = frozenset(STAGES[STAGES.index(first) :]) if first else frozenset()
    with open_run_directory(out_dir, resume=start.resume, overwrite=start.overwrite) as manifest:
        for name in manifest.changed_files():
            console.warn(f"{name} is not as this run wrote it; it is written again")
        on_main(lambda: _refuse_cleaned(out_dir, restart))
        on_main(lambda: require_texts(recipe, console))
        on_main(lambda: require_disk(plan.disk, out_dir, restart=restart))
        manifest.update(hardware=describe())
        teacher = on_main(lambda: _open_teacher(recipe, source, out_dir, console))
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
        tried = planned_ahead([(recipe, plan)]) if ahead is None else ahead
        run_preflight(tried, source, teacher, out_dir, manifest, console)
        for name, step in STEPS.items():
            step(run)
            if name == "prune":
                run.record_first()
        return _bundled(run, source, check=start.check)


def _bundled(run: Run, source: ModelSource, *, check: bool) -> RunSummary:
    """Write what a finished run leaves beside its artifacts, and look at all of it once more."""
    out_dir = run.out_dir
    on_main(lambda: write_origins(run, source))
    on_main(lambda: write_model_card(out_dir, summary(run)))
    on_main(lambda: write_page(out_dir, summary(run)))
    _check_contents(run, check=check)
    result = on_main(lambda: summary(run))
    if run.plan.promise and result.promise:
        for warning in promise_warnings(run.plan.promise, result.promise):
            run.console.warn(warning)
    run.record_choices()
    run.manifest.add_files((RECIPE_FILE, PLAN_FILE, CARD_FILE, PAGE_FILE, LINEAGE_FILE, BOM_FILE))
    on_main(lambda: write_sums(out_dir, run.at, DOCUMENTS, on_warning=run.console.warn))
    return on_main(lambda: summary(run))


def _open_teacher(recipe: Recipe, source: ModelSource, out_dir: Path, console: Console) -> ModelArtifact:
    """The model to compress, checked; a GGUF file is converted beside the stages."""
    return open_checkpoint(
        source,
        out_dir / "stages",
        dtype=resolve_dtype(recipe.dtype),
        tokenizer=recipe.tokenizer,
        trust_remote_code=recipe.trust_remote_code,
        on_warning=console.warn,
    )


def check_choices(recipe: Recipe, teacher: Dims) -> None:
    """Refuse, before anything is written, what no model and no text could make right."""
    require_prunable(teacher)
    require_programs(recipe)
    if recipe.evaluate.tasks:
        require_lm_eval()
    require_tools(recipe.export_formats(), recipe.export)
    require_executable(recipe)
    require_trainable(recipe)


def _refuse_cleaned(out_dir: Path, restart: frozenset[str]) -> None:
    """Refuse, before anything is deleted, to start again from stages whose weights are gone."""
    if "evaluate" not in restart:  # what comes later reads the student and its exports
        return
    for directory in sorted((out_dir / "stages").glob("*")):
        is_made_again = directory.name in restart or directory.name.startswith(TEACHER_EXPORT)
        if is_cleaned(directory) and not is_made_again:
            raise UsageError(
                "the weights of an earlier stage were deleted by `clean`",
                where=str(directory),
                hint="the same command with --restart-from prune makes all of them again",
            )


def _check_reading(recipe: Recipe, teacher: ModelArtifact) -> None:
    """Refuse, before any stage, a tokenizer or texts that one of them could not use."""
    trust = recipe.trust_remote_code
    check_files(recipe.export_formats(), teacher.path)
    require_positions(recipe, read_config(teacher.path))
    require_tokenizer(teacher.path, trust_remote_code=trust)
    if recipe.evaluate.tasks:
        require_tasks(recipe.evaluate, trust_code=trust)
    tokenizer = load_tokenizer(teacher.path, trust_remote_code=trust)
    require_windows(recipe, tokenizer, teacher.texts)
    require_chat_choices(recipe, teacher, tokenizer)


def _check_contents(run: Run, *, check: bool) -> None:
    """Nothing was left to do: compare every file of the finished run with what was recorded of it."""
    if run.has_worked:
        return
    whole = [artifact for artifact in run.reused if not is_cleaned(artifact.path)]
    sizes = [record["bytes"] for artifact in whole for record in artifact.files.values()]
    what = f"{len(sizes)} files of a finished run, {sum(sizes):,} bytes"
    if not check:
        run.console.warn(f"--no-check: the contents of {what}, are not compared with their sha256")
        return
    context = StageContext(
        console=run.console, seed=0, device="cpu", dtype="float32", redo=redo_in_run, checked=run.checked
    )
    for artifact in whole:
        on_main(lambda artifact=artifact: context.check_contents(artifact))  # type: ignore[misc]
    run.console.info(f"compared with their sha256: {what}")


def summary(run: Run) -> RunSummary:
    """The run's result, read from what the stages recorded."""
    return summary_of(
        run.out_dir, recipe=run.recipe, plan=run.plan, manifest=run.manifest.record, made=run.at
    )
