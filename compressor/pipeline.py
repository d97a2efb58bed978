"""The whole road, stage by stage: every stage reads one directory and writes the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.comparisons import arm_name, fair_comparisons
from bench.stage import BENCH, BenchStageConfig
from compressor.artifact import ModelArtifact, write_json
from compressor.console import Console
from compressor.distillation.recover import RECOVER, RecoverStageConfig
from compressor.distillation.stage import DISTILL
from compressor.errors import ResourceError, UnsupportedError, UsageError
from compressor.evaluation.stage import EVALUATE, EvaluateStageConfig
from compressor.hardware import describe, free_disk_bytes, resolve_device, resolve_dtype
from compressor.manifest import Manifest, open_run_directory
from compressor.models.load import ModelSource, open_checkpoint
from compressor.planning import Plan, require_prunable
from compressor.processes import is_main, on_main
from compressor.pruning.stage import PRUNE, PruneStageConfig
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe import ExportFormat, Recipe, dump_recipe
from compressor.report import write_model_card
from compressor.sparsity.stage import ADAPTIVE, SPARSIFY, SparsifyStageConfig
from compressor.stage import Stage, StageContext, execute
from exporters.base import export_stage, needs_quantised, settings_of
from exporters.tensorrt_llm.versions import require_builder

STAGES = ("prune", "distill", "sparsify", "recover", "quantize", "export", "evaluate", "bench", "report")
STUDENT = "student"
SIXTEEN_BIT = ("pruned", "distilled", "sparsified", "recovered")
BENCH_PRECISION_OF_FORMAT: dict[ExportFormat, str] = {
    "onnx": "fp32",
    "onnx-fp16": "fp16",
    "onnx-int4": "int4",
}


@dataclass(kw_only=True)
class Run:
    """A run in progress: its recipe, where it writes, and what it has made so far."""

    recipe: Recipe
    plan: Plan
    out_dir: Path
    console: Console
    manifest: Manifest
    teacher: ModelArtifact
    restart: frozenset[str]
    made: dict[str, ModelArtifact] = field(default_factory=dict)

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
            teacher=self.teacher if stage in (DISTILL, RECOVER) else None,
            others=others or {},
            trust_remote_code=self.recipe.trust_remote_code,
        )
        outcome = execute(
            stage, config, source, self.out_dir / where, context, restart=part_of in self.restart
        )
        self.manifest.add_stage(outcome, where=where)
        state = "already there" if outcome.skipped else f"{outcome.seconds:.1f} s"
        self.console.info(f"{stage.name}: {where}: {state}")
        return outcome.artifact


def run_pipeline(
    recipe: Recipe,
    source: ModelSource,
    plan: Plan,
    out_dir: Path,
    console: Console,
    *,
    resume: bool = False,
    overwrite: bool = False,
    restart_from: str | None = None,
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
    """
    require_prunable(plan.teacher)
    if recipe.export.tensorrt_llm.require_engine:
        require_builder(recipe.export_formats())
    require_sparsifiable(recipe)
    restart = frozenset(STAGES[STAGES.index(restart_from) :]) if restart_from else frozenset()
    with open_run_directory(out_dir, resume=resume, overwrite=overwrite) as manifest:
        _require_disk(plan, out_dir)
        manifest.update(hardware=describe())
        stages, dtype = out_dir / "stages", resolve_dtype(recipe.dtype)
        teacher = on_main(lambda: open_checkpoint(source, stages, dtype=dtype))
        run = Run(
            recipe=recipe,
            plan=plan,
            out_dir=out_dir,
            console=console,
            manifest=manifest,
            teacher=teacher,
            restart=restart,
        )
        for name in STAGES:
            _STEPS[name](run)
            if name == "prune" and is_main():
                _record_choices(run)
        return on_main(lambda: summary(run))


def _require_disk(plan: Plan, out_dir: Path) -> None:
    needed, free = plan.document["disk_bytes"]["total"], free_disk_bytes(out_dir)
    if free < needed:
        raise ResourceError(
            "not enough disk", where=str(out_dir), expected=f"{needed:,} bytes", found=f"{free:,} bytes free"
        )


def _record_choices(run: Run) -> None:
    """What to run again, and what was planned; written once the stages accepted the recipe."""
    (run.out_dir / "recipe.yaml").write_text(dump_recipe(run.recipe), encoding="utf-8")
    write_json(run.out_dir / "plan.json", run.plan.document)


def _prune(run: Run) -> None:
    student = run.plan.target.student
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = PruneStageConfig(
        shape={name: getattr(student, name) for name in fields},
        prune=run.recipe.prune.model_copy(update={"shape": None}),
        calibration=run.recipe.calibration,
    )
    run.made["pruned"] = run.execute(PRUNE, config, run.teacher, "stages/prune", part_of="prune")


def _distill(run: Run) -> None:
    if run.recipe.distill.tokens:
        run.made["distilled"] = run.execute(
            DISTILL, run.recipe.distill, run.made["pruned"], "stages/distill", part_of="distill"
        )


def require_sparsifiable(recipe: Recipe) -> None:
    """Refuse, before any work, a sparse run that could not reach its end.

    Raises:
        UsageError: for adaptive training without tokens.
        UnsupportedError: for a low-rank branch and an export that cannot carry it.
    """
    sparsify = recipe.sparsify
    if sparsify.pattern is None:
        return
    if sparsify.method == ADAPTIVE and recovery_tokens(recipe) == 0:
        raise UsageError("ast trains", where="--recover-tokens", expected="at least one window", found=0)
    others = [name for name in recipe.export_formats() if name != "huggingface"]
    if sparsify.slorb != "off" and (others or recipe.quantize.fp8):
        raise UnsupportedError(
            "these exports cannot carry the low-rank branch of a sparse model",
            expected="--formats huggingface, without --fp8; merging the branch would fill the zeros",
            found=", ".join(others) or "--fp8",
        )


def recovery_tokens(recipe: Recipe) -> int:
    """Tokens of the training that follows sparsification."""
    own = recipe.sparsify.tokens
    return recipe.distill.tokens if own is None else own


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
    run.made["recovered"] = run.execute(RECOVER, config, _student(run), "stages/recover", part_of="recover")


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
    for name in run.recipe.export_formats():
        source = run.made["quantized"] if needs_quantised(name) else _student(run)
        settings = settings_of(name, run.recipe.export)
        where = STUDENT if name == "huggingface" else f"exports/{name}"
        run.made[f"export {name}"] = run.execute(
            export_stage(name), settings, source, where, part_of="export"
        )


def _evaluate(run: Run) -> None:
    data = run.recipe.evaluate.data or run.recipe.distill.data
    config = EvaluateStageConfig(
        data=data,
        seen=tuple(sorted({run.recipe.distill.data, run.recipe.calibration.data})),
        window=run.recipe.evaluate.window,
        size=run.recipe.evaluate.size,
    )
    models = {"teacher": run.teacher}
    models |= {name: run.made[name] for name in (*SIXTEEN_BIT, "quantized") if name in run.made}
    run.made["evaluation"] = run.execute(
        EVALUATE, config, _student(run), "stages/evaluate", part_of="evaluate", others=models
    )


def _bench(run: Run) -> None:
    """Teacher and student through the same runtime in the same precision, for every exported graph."""
    if not run.recipe.bench.enabled:
        return
    graphs: dict[str, ModelArtifact] = {}
    for name, precision in BENCH_PRECISION_OF_FORMAT.items():
        student = run.made.get(f"export {name}")
        if student is None or precision not in run.recipe.bench.precisions:
            continue
        settings = settings_of(name, run.recipe.export).model_copy(update={"int4_min_top1": None})
        graphs[arm_name("teacher", precision)] = run.execute(
            export_stage(name), settings, run.teacher, f"stages/teacher-{name}", part_of="bench"
        )
        graphs[arm_name("student", precision)] = student
    if not graphs:
        run.console.warn("no ONNX export to benchmark: add onnx or onnx-int4 to the formats")
        return
    config = BenchStageConfig(
        bench=run.recipe.bench,
        comparisons=fair_comparisons(tuple(graphs), which=run.recipe.bench.baselines),
        not_measured=_not_measured(run),
        quality=_quality(run),
        shapes={"teacher": run.plan.teacher.to_dict(), "student": run.plan.target.student.to_dict()},
    )
    run.made["bench"] = run.execute(BENCH, config, _student(run), "bench", part_of="bench", others=graphs)


def _quality(run: Run) -> tuple[tuple[str, str, float], ...]:
    """Perplexity of teacher and student, for the plot of quality against speed."""
    models = run.made["evaluation"].details["models"]
    student = [name for name in SIXTEEN_BIT if name in models][-1]
    return tuple(
        (name, "perplexity", models[evaluated]["perplexity"])
        for name, evaluated in (("teacher", "teacher"), ("student", student))
    )


def _not_measured(run: Run) -> tuple[tuple[str, str], ...]:
    if not run.recipe.quantize.fp8:
        return ()
    return (("student FP8", "this runtime has no FP8 kernels on a CPU; the FP8 export's speed is unknown"),)


def _report(run: Run) -> None:
    on_main(lambda: write_model_card(run.out_dir, summary(run)))


def summary(run: Run) -> dict[str, Any]:
    """The run's result as one JSON document, read from what the stages recorded."""
    made = run.made
    return {
        "schema": "compress-export/run/1",
        "out_dir": str(run.out_dir),
        "student": str(run.out_dir / STUDENT),
        "plan": run.plan.document,
        "stages": run.manifest.record["stages"],
        "distill": made["distilled"].details if "distilled" in made else None,
        "sparsify": made["sparsified"].details if "sparsified" in made else None,
        "recover": made["recovered"].details if "recovered" in made else None,
        "evaluation": made["evaluation"].details,
        "exports": {
            name.removeprefix("export "): artifact.details
            for name, artifact in made.items()
            if name.startswith("export ")
        },
        "bench": made["bench"].details if "bench" in made else None,
        "versions": run.manifest.record["versions"],
        "hardware": run.manifest.record["hardware"],
        "warnings": [
            warning for stage in run.manifest.record["stages"].values() for warning in stage["warnings"]
        ],
    }


_STEPS: dict[str, Callable[[Run], None]] = {
    "prune": _prune,
    "distill": _distill,
    "sparsify": _sparsify,
    "recover": _recover,
    "quantize": _quantize,
    "export": _export,
    "evaluate": _evaluate,
    "bench": _bench,
    "report": _report,
}
