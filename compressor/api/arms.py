"""From the models of a benchmark to its arms, by the runtime's row in the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.api.execution import SCRATCH, Execution
from compressor.api.random_models import random_export
from compressor.choices.formats import options
from compressor.choices.runtimes import (
    AUTO,
    CHECKPOINT,
    NONE,
    RUNTIMES,
    Runtime,
    runtime_named,
    runtime_on_this_machine,
)
from compressor.core.errors import UsageError
from compressor.core.hardware import torch_sees_gpu
from compressor.models.source import distinct_names
from compressor.recipe.recipe import Export
from compressor.runs.artifact import ModelArtifact, fingerprint_of, sha256_of_file

if TYPE_CHECKING:
    from bench.runtimes.base import ServingRuntime, StaticRuntime


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a benchmark measures; `select` fills in what is usual.

    Attributes:
        models: MODEL arguments; the first is the baseline.
        runtime: Row of the runtime that executes all of them.
        reason: Why it is this one.
        precisions: Every model is measured in each; empty for the one that it is stored in.
        engines: A TensorRT engine directory per model, or none at all.
        random_weights: Whether MODELs are shapes whose weights are drawn at random.
    """

    models: tuple[str, ...]
    runtime: Runtime
    reason: str
    precisions: tuple[str, ...]
    engines: tuple[Path, ...] = ()
    random_weights: bool = False


@dataclass(kw_only=True)
class Arms:
    """The arms of a benchmark, ready for its stage.

    Attributes:
        baseline: The first model.
        artifacts: What is executed, by name of the arm, in order of measurement.
        engines: TensorRT engines that run in an arm's place, by `engine_of` its name.
        shapes: Dimensions of every model, by its name.
    """

    baseline: ModelArtifact
    artifacts: dict[str, ModelArtifact] = field(default_factory=dict)
    engines: dict[str, ModelArtifact] = field(default_factory=dict)
    shapes: dict[str, dict[str, int | bool | str]] = field(default_factory=dict)


def select(
    models: tuple[str, ...],
    *,
    runtime: str = AUTO,
    precisions: tuple[str, ...] | None = None,
    engines: tuple[Path, ...] = (),
    random_weights: bool = False,
) -> Selection:
    """Fill in the defaults: the runtime that this machine has, or one for engines or random weights.

    Raises:
        UsageError: for an unknown runtime, a selection without anything to compare, or options that
            contradict each other.
    """
    drawing = [row for row in RUNTIMES.values() if row.random_weights]
    row, reason = _runtime(runtime, drawing, has_engines=bool(engines), random_weights=random_weights)
    if random_weights and row.random_weights is None:
        raise UsageError(
            f"{row.name} does not run models of random weights",
            where="--random-weights",
            hint=f"use --runtime {' or '.join(row.name for row in drawing)}",
        )
    default = row.random_weights if random_weights else next(iter(row.precisions), None)
    chosen = precisions or ((default,) if default else ())
    if len(set(chosen)) < len(chosen):
        raise UsageError(
            "a precision is given twice", where="--precision", found=", ".join(chosen), hint="name each once"
        )
    if len(models) == 1 and len(chosen) <= 1:
        raise UsageError(
            "a benchmark compares a baseline with at least one other model or precision",
            found=f"{models[0]} alone",
            hint="name a second MODEL, or several precisions with --precision",
        )
    if engines and not (row.engines and len(engines) == len(models)):
        able = [other.name for other in RUNTIMES.values() if other.engines]
        raise UsageError(
            "every MODEL needs an engine of its own",
            where="--engine",
            expected=f"--runtime {' or '.join(able)} and {len(models)} engines, in the order of the models",
            found=f"{row.name} and {len(engines)}",
            hint="give --engine once per MODEL, or leave it out",
        )
    return Selection(
        models=models,
        runtime=row,
        reason=reason,
        precisions=chosen,
        engines=engines,
        random_weights=random_weights,
    )


def _runtime(
    name: str, drawing: list[Runtime], *, has_engines: bool, random_weights: bool
) -> tuple[Runtime, str]:
    """The row that is named, else the one that can do what is asked for, else this machine's; and why.

    Of those `drawing` random weights that is one which needs no export of them.
    """
    if name == NONE:
        raise UsageError(
            "a benchmark without a runtime measures nothing",
            where="--runtime",
            found=NONE,
            hint="leave --runtime out, or name one",
        )
    if name != AUTO:
        return runtime_named(name), "named by --runtime or the recipe"
    if has_engines:
        return next(row for row in RUNTIMES.values() if row.engines and row.is_automatic), "it runs engines"
    if random_weights:
        return next(row for row in drawing if row.reads == CHECKPOINT), "it draws random weights"
    return runtime_on_this_machine(has_gpu=torch_sees_gpu())


def open_arms(selection: Selection, out_dir: Path, *, export: Export, execution: Execution) -> Arms:
    """Open every model and make what the runtime executes: ONNX graphs are exported and verified once.

    Those of random weights are not verified: there is no model that they have to agree with.

    Raises:
        UsageError, UnsupportedError, DependencyError: before a model is read, for a path, a precision, or
            a runtime that is not installed.
    """
    from bench.bench_stage import engine_of
    from bench.design.comparisons import arm_name

    _refuse_early(selection, out_dir, execution)
    sources = _sources(selection, out_dir, execution)
    names = [name.replace(":", "-") for name in distinct_names(selection.models)]
    arms = Arms(baseline=sources[0])
    for index, (name, source) in enumerate(zip(names, sources, strict=True)):
        arms.shapes[name] = _shape(source)
        if selection.runtime.serves:
            engine = selection.engines[index] if selection.engines else None
            arm = arm_name(name, _served_precision(selection, source, engine))
            arms.artifacts[arm] = source
            if engine is not None:
                arms.engines[engine_of(arm)] = _engine_artifact(engine, source)
            continue
        for precision in selection.precisions:
            executed = source
            if selection.runtime.reads != CHECKPOINT:
                form = _format_of(selection.runtime, precision)
                scratch = out_dir.absolute().parent / SCRATCH
                if selection.random_weights:
                    executed = random_export(source, form, scratch / "shapes", console=execution.console)
                else:
                    graph = scratch / f"{source.fingerprint[:16]}-{precision}"
                    executed = _exported(source, form, graph, export=export, execution=execution)
            arms.artifacts[arm_name(name, precision)] = executed
    return arms


def _refuse_early(selection: Selection, out_dir: Path, execution: Execution) -> None:
    """Refuse what would end the work later, before a model is read."""
    from exporters.registry import require_tools

    execution.begin(out_dir, () if selection.random_weights else selection.models)
    selection.runtime.require_found()
    if selection.runtime.serves:
        return
    if selection.runtime.reads != CHECKPOINT:
        require_tools([_format_of(selection.runtime, precision) for precision in selection.precisions])
    runtime: StaticRuntime = selection.runtime.load()
    for precision in selection.precisions:
        runtime.require(precision)


def _sources(selection: Selection, out_dir: Path, execution: Execution) -> list[ModelArtifact]:
    from bench.design.shape_only import shape_of, write_shape

    if not selection.random_weights:
        return [execution.open(model, out_dir, tokenizer=False) for model in selection.models]
    scratch = out_dir.absolute().parent / SCRATCH / "shapes"
    return [write_shape(shape_of(model), scratch / model.replace(":", "-")) for model in selection.models]


def _format_of(runtime: Runtime, precision: str) -> str:
    """The export format of the directories that a runtime reads in this precision."""
    if precision not in runtime.precisions:
        raise UsageError(
            f"{runtime.name} does not run models in precision {precision!r}",
            where="--precision",
            expected=", ".join(runtime.precisions),
            hint="choose one of the expected precisions, or another --runtime",
        )
    return options()[runtime.reads][precision]


def _served_precision(selection: Selection, source: ModelArtifact, engine: Path | None) -> str:
    """How the checkpoint, or the engine built from it, is stored."""
    server: ServingRuntime = selection.runtime.load()
    server.check(source.path, engine=engine)
    stored = server.stored_precision(engine or source.path)
    if selection.precisions not in ((), (stored,)):
        raise UsageError(
            "a server runs a model in the precision that it is stored in",
            where="--precision",
            expected=stored,
            found=", ".join(selection.precisions),
            hint="leave --precision out, or export the model in that precision first",
        )
    return stored


def _engine_artifact(engine: Path, source: ModelArtifact) -> ModelArtifact:
    digests = {file.name: sha256_of_file(file) for file in sorted(engine.iterdir()) if file.is_file()}
    return ModelArtifact(
        path=engine,
        stage="engine",
        fingerprint=fingerprint_of(digests),
        lineage=(*source.lineage, "engine"),
        num_parameters=source.num_parameters,
    )


def _exported(
    source: ModelArtifact, form: str, directory: Path, *, export: Export, execution: Execution
) -> ModelArtifact:
    """The exported directory of a model, such as its ONNX graph, built and verified once."""
    from exporters.export_stage import export_stage
    from exporters.registry import exporter_of

    settings = exporter_of(form).settings(export)
    return execution.beside().run(export_stage(form), settings, source, directory)


def _shape(source: ModelArtifact) -> dict[str, int | bool | str]:
    """The fields of a checkpoint's config that say its shape."""
    from compressor.models.checkpoint import read_config
    from compressor.models.dims import dims_of_config

    return dims_of_config(read_config(source.path)).to_dict()
