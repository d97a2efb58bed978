"""The whole road, stage by stage: every stage reads one directory and writes the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.bench_stage import BENCH, BenchStageConfig
from bench.design.comparisons import arm_name, fair_comparisons
from bench.report.results import NotMeasured, Quality
from bench.runtimes.base import ServingRuntime
from compressor.choices.formats import FORMATS, STUDENT_FORMAT, options
from compressor.core.console import Console
from compressor.core.errors import ResourceError
from compressor.core.hardware import (
    available_memory_bytes,
    describe,
    free_disk_bytes,
    resolve_device,
    resolve_dtype,
)
from compressor.core.processes import is_main, on_main
from compressor.distillation.correct_stage import CORRECT
from compressor.distillation.distill_stage import DISTILL, GENERATED, STORED_LOGITS
from compressor.distillation.generate_stage import GENERATE
from compressor.evaluation.evaluate_stage import EVALUATE
from compressor.models.checkpoint import read_config
from compressor.models.source import ModelSource, open_checkpoint
from compressor.models.tokenizer import load_tokenizer
from compressor.pipeline.model_card import summary_of
from compressor.pipeline.preflight import (
    evaluation_config,
    recovery_tokens,
    require_consistent,
    require_expressible,
    require_expressible_source,
    require_sparsifiable,
    require_texts,
    require_tokenizer,
    require_trainable,
    require_windows,
)
from compressor.pipeline.report import CARD_FILE, write_model_card
from compressor.planning.plan import Plan, require_prunable
from compressor.pruning.prune_stage import PRUNE, PruneStageConfig
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Export, Recipe, dump_recipe
from compressor.runs.artifact import ModelArtifact, read_artifact, write_json, write_text
from compressor.runs.manifest import PLAN_FILE, RECIPE_FILE, Manifest, open_run_directory
from compressor.runs.stage import Stage, StageContext, execute
from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig
from exporters.export_stage import export_stage
from exporters.registry import exporter_of, place_of, require_tools

STAGES = (
    "prune",
    "generate",
    "correct",
    "distill",
    "sparsify",
    "recover",
    "quantize",
    "export",
    "evaluate",
    "bench",
    "report",
)
CORRECTED = "corrected teacher"
TEACHER_GRAPH = "teacher-"
GIB = 1 << 30
# Where the plan names a stage's memory otherwise.
_MEMORY_OF_STAGE = {"correct": "correction", "export": "verify"}
SIXTEEN_BIT = ("pruned", "distilled", "sparsified", "recovered")


@dataclass(kw_only=True)
class Run:
    """A run in progress: its recipe, where it writes, and what it has made so far.

    Attributes:
        made: Artifacts by their role.
        reused: Those of them that were there already.
        checked: Directories whose contents this process wrote or compared with their records.
        has_worked: Whether any stage ran in this process.
    """

    recipe: Recipe
    plan: Plan
    out_dir: Path
    console: Console
    manifest: Manifest
    teacher: ModelArtifact
    restart: frozenset[str]
    made: dict[str, ModelArtifact] = field(default_factory=dict)
    reused: list[ModelArtifact] = field(default_factory=list)
    checked: set[Path] = field(default_factory=set)
    has_worked: bool = False

    def execute(
        self,
        stage: Stage[Any],
        config: BaseModel,
        source: ModelArtifact,
        where: str,
        *,
        part_of: str,
        others: dict[str, ModelArtifact] | None = None,
    ) -> ModelArtifact:
        """Run one stage into `out_dir/where` and record it."""
        self.console.info(f"{stage.name}: {where}")
        context = StageContext(
            console=self.console,
            seed=self.recipe.seed,
            device=resolve_device(self.recipe.device),
            dtype=resolve_dtype(self.recipe.dtype),
            teacher=self.made.get(CORRECTED, self.teacher) if stage in (DISTILL, RECOVER) else None,
            others=others or {},
            trust_remote_code=self.recipe.trust_remote_code,
            redo=_redo,
            checked=self.checked,
            before=lambda: self._begin(part_of, where),
        )
        outcome = execute(
            stage, config, source, self.out_dir / where, context, restart=part_of in self.restart
        )
        self.manifest.add_stage(outcome, where=where)
        if outcome.skipped:
            self.reused.append(outcome.artifact)
        state = "already there" if outcome.skipped else f"{outcome.seconds:.1f} s"
        self.console.info(f"{stage.name}: {where}: {state}")
        return outcome.artifact

    def _begin(self, part_of: str, where: str) -> None:
        """Before a stage does its work: say what is made again, and what will not fit into memory."""
        self.has_worked = True
        if where in self.manifest.record["stages"] and part_of not in self.restart:
            self.console.warn(f"{where} was finished and is gone; it is made again")
        needed = self.plan.document["memory_bytes"].get(_MEMORY_OF_STAGE.get(part_of, part_of))
        available = available_memory_bytes()
        if needed is not None and resolve_device(self.recipe.device) == "cpu" and needed > available:
            self.console.warn(
                f"{part_of} is estimated to need {needed / GIB:.1f} GiB of memory, and "
                f"{available / GIB:.1f} GiB are available"
            )


def run_pipeline(  # noqa: PLR0913 - four of them are switches of the command line
    recipe: Recipe,
    source: ModelSource,
    plan: Plan,
    out_dir: Path,
    console: Console,
    *,
    resume: bool = False,
    overwrite: bool = False,
    restart_from: str | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Compress, export, verify and measure a model; returns the summary printed by `--json`.

    Args:
        recipe: Every choice.
        source: The teacher.
        plan: The resolved shapes.
        out_dir: The run directory.
        console: Messages.
        resume: Assert that there is something to resume.
        overwrite: Start anew in a directory of ours.
        restart_from: Discard this stage and all later ones first.
        check: Compare every file of a finished run with its recorded sha256 when it is repeated.
    """
    _check_choices(recipe, source, plan)
    restart = frozenset(STAGES[STAGES.index(restart_from) :]) if restart_from else frozenset()
    with open_run_directory(out_dir, resume=resume, overwrite=overwrite) as manifest:
        for name in manifest.changed_files():
            console.warn(f"{name} is not as this run wrote it; it is written again")
        on_main(lambda: require_texts(recipe, console))
        _require_disk(plan, out_dir)
        manifest.update(hardware=describe())
        stages, dtype = out_dir / "stages", resolve_dtype(recipe.dtype)
        teacher = on_main(lambda: _open_teacher(source, stages, dtype, recipe, console))
        require_expressible(recipe, read_config(teacher.path), plan.target.student)
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
        for name in STAGES:
            _STEPS[name](run)
            if name == "prune" and (restart or not (out_dir / RECIPE_FILE).is_file()):
                _record_choices(run)
        _check_contents(run, check=check)
        _record_choices(run)
        manifest.add_files((RECIPE_FILE, PLAN_FILE, CARD_FILE))
        return on_main(lambda: summary(run))


def _check_choices(recipe: Recipe, source: ModelSource, plan: Plan) -> None:
    """Refuse, before anything is written, what no model and no text could make right."""
    require_prunable(plan.teacher)
    require_consistent(recipe)
    if recipe.bench.enabled:
        recipe.bench.row.require_executable()
    require_tools(recipe.export_formats(), engine=recipe.export.tensorrt_llm.require_engine)
    require_sparsifiable(recipe)
    require_trainable(recipe)
    require_expressible_source(recipe, source, plan.target.student)


def _check_reading(recipe: Recipe, teacher: ModelArtifact) -> None:
    """Refuse, before any stage, a tokenizer or texts that one of them could not use."""
    trust = recipe.trust_remote_code
    require_tokenizer(teacher.path, trust_remote_code=trust)
    require_windows(recipe, load_tokenizer(teacher.path, trust_remote_code=trust), teacher.texts)


def _open_teacher(
    source: ModelSource, stages: Path, dtype: str, recipe: Recipe, console: Console
) -> ModelArtifact:
    return open_checkpoint(
        source,
        stages,
        dtype=dtype,
        tokenizer=recipe.tokenizer,
        trust_remote_code=recipe.trust_remote_code,
        on_warning=console.warn,
    )


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
        console=run.console, seed=0, device="cpu", dtype="float32", redo=_redo, checked=run.checked
    )
    for artifact in run.reused:
        on_main(lambda artifact=artifact: context.check_contents(artifact))  # type: ignore[misc]
    run.console.info(f"compared with their sha256: {what}")


def _redo(stage: str, path: Path) -> str:
    """How a stage of a run is made again; a teacher's graph belongs to the benchmark."""
    name = "bench" if path.name.startswith(TEACHER_GRAPH) else stage.partition("-")[0]
    return f"the same command with --restart-from {name}"


def _require_disk(plan: Plan, out_dir: Path) -> None:
    needed, free = plan.document["disk_bytes"]["total"], free_disk_bytes(out_dir)
    if free < needed:
        raise ResourceError(
            "not enough disk", where=str(out_dir), expected=f"{needed:,} bytes", found=f"{free:,} bytes free"
        )


def _record_choices(run: Run) -> None:
    """What to run again, and what was planned.

    Written after the first stage, for a run that is interrupted; but over another recipe's record only
    when every stage accepted this one, or was told to start again.
    """
    if not is_main():
        return
    write_text(run.out_dir / RECIPE_FILE, dump_recipe(run.recipe))
    write_json(run.out_dir / PLAN_FILE, run.plan.document)
    run.manifest.add_files((RECIPE_FILE, PLAN_FILE))


def _prune(run: Run) -> None:
    student = run.plan.target.student
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = PruneStageConfig(
        shape={name: getattr(student, name) for name in fields},
        prune=run.recipe.prune.model_copy(update={"shape": None}),
        calibration=run.recipe.calibration,
    )
    run.made["pruned"] = run.execute(PRUNE, config, run.teacher, "stages/prune", part_of="prune")


def _generate(run: Run) -> None:
    generate = run.recipe.distill.generate
    if generate.tokens and run.recipe.distill.tokens:
        run.made[GENERATED] = run.execute(
            GENERATE, generate, run.teacher, "stages/generate", part_of="generate"
        )


def _correct(run: Run) -> None:
    if run.recipe.distill.correction.mode == "first" and run.recipe.distill.tokens:
        run.made[CORRECTED] = run.execute(
            CORRECT, run.recipe.distill, run.teacher, "stages/correct", part_of="correct"
        )


def _distill(run: Run) -> None:
    if run.recipe.distill.tokens:
        run.made["distilled"] = run.execute(
            DISTILL,
            run.recipe.distill,
            run.made["pruned"],
            "stages/distill",
            part_of="distill",
            others=_teaching(run),
        )


def _teaching(run: Run) -> dict[str, ModelArtifact]:
    """What training reads beside student and teacher."""
    others = {GENERATED: run.made[GENERATED]} if GENERATED in run.made else {}
    stored = run.recipe.distill.teacher_logits
    return others | ({STORED_LOGITS: read_artifact(Path(stored))} if stored else {})


def _sparsify(run: Run) -> None:
    if run.recipe.sparsify.pattern is None:
        return
    config = SparsifyStageConfig(sparsify=run.recipe.sparsify, calibration=run.recipe.calibration)
    run.made["sparsified"] = run.execute(
        SPARSIFY, config, _student(run), "stages/sparsify", part_of="sparsify"
    )


def _recover(run: Run) -> None:
    if run.recipe.sparsify.pattern is None or recovery_tokens(run.recipe) == 0:
        return
    config = RecoverStageConfig(distill=run.recipe.distill, sparsify=run.recipe.sparsify)
    run.made["recovered"] = run.execute(
        RECOVER, config, _student(run), "stages/recover", part_of="recover", others=_teaching(run)
    )


def _student(run: Run) -> ModelArtifact:
    """The 16-bit model that is exported: the last that training, sparsifying or pruning made."""
    made = [run.made[name] for name in SIXTEEN_BIT if name in run.made]
    return made[-1]


def _quantize(run: Run) -> None:
    if run.recipe.quantize.fp8:
        config = QuantizeStageConfig(quantize=run.recipe.quantize, calibration=run.recipe.calibration)
        run.made["quantized"] = run.execute(
            QUANTIZE, config, _student(run), "stages/quantize", part_of="quantize"
        )


def _export(run: Run) -> None:
    # The 16-bit student is what every other format is compared with, asked for or not.
    for name in dict.fromkeys((STUDENT_FORMAT, *run.recipe.export_formats())):
        source = run.made["quantized"] if FORMATS[name].needs_fp8 else _student(run)
        settings = exporter_of(name).settings(run.recipe.export)
        run.made[f"export {name}"] = run.execute(
            export_stage(name), settings, source, place_of(name), part_of="export"
        )


def _evaluate(run: Run) -> None:
    config = evaluation_config(run.recipe, run.teacher.texts)
    models = {"teacher": run.teacher}
    models |= {CORRECTED: run.made[CORRECTED]} if CORRECTED in run.made else {}
    models |= {name: run.made[name] for name in (*SIXTEEN_BIT, "quantized") if name in run.made}
    run.made["evaluation"] = run.execute(
        EVALUATE, config, _student(run), "stages/evaluate", part_of="evaluate", others=models
    )


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
        run.manifest.update(warnings=[message])
        return
    config = BenchStageConfig(
        bench=bench,
        comparisons=fair_comparisons(tuple(arms), which=bench.baselines),
        not_measured=_not_measured(run),
        quality=_quality(run),
        shapes={"teacher": run.plan.teacher.to_dict(), "student": run.plan.target.student.to_dict()},
    )
    run.made["bench"] = run.execute(BENCH, config, _student(run), "bench", part_of="bench", others=arms)


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
    for precision, name in bench.read_formats().items():
        if student := run.made.get(f"export {name}"):
            settings = exporter_of(name).settings(Export())  # no gate on the teacher's own graph
            arms[arm_name("teacher", precision)] = run.execute(
                export_stage(name), settings, run.teacher, f"stages/{TEACHER_GRAPH}{name}", part_of="bench"
            )
            arms[arm_name("student", precision)] = student
    return arms


def _quality(run: Run) -> tuple[Quality, ...]:
    """Perplexity of teacher and student, for the plot of quality against speed."""
    models = run.made["evaluation"].details["models"]
    student = [name for name in SIXTEEN_BIT if name in models][-1]
    return tuple(
        Quality(model=name, metric="perplexity", value=models[evaluated]["perplexity"])
        for name, evaluated in (("teacher", "teacher"), ("student", student))
    )


def _not_measured(run: Run) -> tuple[NotMeasured, ...]:
    if not run.recipe.quantize.fp8:
        return ()
    reason = f"{run.recipe.bench.row.name} does not run the FP8 export, whose speed is unknown"
    return (NotMeasured(what="student FP8", reason=reason),)


def _report(run: Run) -> None:
    on_main(lambda: write_model_card(run.out_dir, summary(run)))


def summary(run: Run) -> dict[str, Any]:
    """The run's result as one JSON document, read from what the stages recorded."""
    roles = {
        "generate": GENERATED,
        "correct": CORRECTED,
        "distill": "distilled",
        "sparsify": "sparsified",
        "recover": "recovered",
        "evaluation": "evaluation",
        "bench": "bench",
    }
    return summary_of(
        run.out_dir,
        plan=run.plan.document,
        manifest=run.manifest.record,
        made={role: run.made[name] for role, name in roles.items() if name in run.made},
        exports={
            name.removeprefix("export "): artifact
            for name, artifact in run.made.items()
            if name.startswith("export ")
        },
    )


_STEPS: dict[str, Callable[[Run], None]] = {
    "prune": _prune,
    "generate": _generate,
    "correct": _correct,
    "distill": _distill,
    "sparsify": _sparsify,
    "recover": _recover,
    "quantize": _quantize,
    "export": _export,
    "evaluate": _evaluate,
    "bench": _bench,
    "report": _report,
}
