"""From the models of a benchmark to its arms: what each runtime runs of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.api.execution import SCRATCH, Execution
from compressor.choices.formats import benchmarked
from compressor.core.errors import UsageError
from compressor.recipe.recipe import Export

if TYPE_CHECKING:
    from compressor.runs.artifact import ModelArtifact

GENAI, TORCH, TENSORRT_LLM = "onnxruntime-genai", "torch-eager", "tensorrt-llm"


@dataclass(frozen=True, kw_only=True)
class Arms:
    """What a benchmark compares.

    Attributes:
        models: The baseline and the others.
        runtime: What executes all of them.
        precisions: Each model is measured in each of them; the first is the baseline's. None as stored, for
            a server.
        random_weights: Models are aliases, whose shape alone is measured.
        engines: One TensorRT engine per model, for that runtime.
        export: How graphs are exported that are measured.
    """

    models: tuple[str, ...]
    runtime: str = GENAI
    precisions: tuple[str, ...] | None = ("fp32",)
    random_weights: bool = False
    engines: tuple[Path, ...] = ()
    export: Export = Export()


@dataclass(frozen=True, kw_only=True)
class OpenArms:
    """The models of a benchmark, opened.

    Attributes:
        first: The baseline's checkpoint.
        arms: What is measured, by name.
        engines: The engines that arms run, by role.
        shapes: Every model's dimensions, by name.
    """

    first: ModelArtifact
    arms: dict[str, ModelArtifact]
    engines: dict[str, ModelArtifact]
    shapes: dict[str, dict[str, int | bool | str]]


def open_arms(wanted: Arms, out_dir: Path, execution: Execution) -> OpenArms:
    """Open every model and make what the runtime runs of it.

    Raises:
        UsageError: for a precision or random weights that the runtime does not take.
    """
    from bench.bench_stage import engine_of
    from bench.design.comparisons import arm_name
    from compressor.models.load import distinct_names

    _refuse_stray_engines(wanted)
    _refuse_early(wanted, out_dir, execution)
    sources = _sources(wanted, out_dir, execution)
    names = [name.replace(":", "-") for name in distinct_names(wanted.models)]
    arms: dict[str, ModelArtifact] = {}
    engines: dict[str, ModelArtifact] = {}
    for index, (name, source) in enumerate(zip(names, sources, strict=True)):
        if wanted.runtime == TENSORRT_LLM:
            arm, engine = _served(name, source, wanted, index)
            arms[arm] = source
            engines |= {engine_of(arm): engine} if engine else {}
            continue
        for precision in wanted.precisions or ():
            arms[arm_name(name, precision)] = (
                _graph(source, precision, wanted, out_dir, execution) if wanted.runtime == GENAI else source
            )
    shapes = {name: _shape(source) for name, source in zip(names, sources, strict=True)}
    return OpenArms(first=sources[0], arms=arms, engines=engines, shapes=shapes)


def _sources(wanted: Arms, out_dir: Path, execution: Execution) -> list[ModelArtifact]:
    from bench.design.shape_only import shape_of, write_shape

    if not wanted.random_weights:
        return [execution.open(model, out_dir, tokenizer=False) for model in wanted.models]
    if wanted.runtime != TORCH:
        raise UsageError(
            "random weights are drawn by torch; a graph or a server would need them on disk",
            where="--random-weights",
            hint=f"--runtime {TORCH}",
        )
    scratch = out_dir.absolute().parent / SCRATCH / "shapes"
    return [write_shape(shape_of(model), scratch / model.replace(":", "-")) for model in wanted.models]


def _refuse_early(wanted: Arms, out_dir: Path, execution: Execution) -> None:
    """Refuse what would end the work later, before a model is read.

    Raises:
        UsageError, UnsupportedError, DependencyError: a path, a precision, or a runtime that is
            not installed.
    """
    from bench.runtimes.tensorrt_llm import require_executable
    from bench.runtimes.torch_linear import require_support
    from compressor.core.hardware import resolve_device
    from exporters.registry import require_tools

    execution.begin(out_dir, () if wanted.random_weights else wanted.models)
    if wanted.runtime == TENSORRT_LLM:
        require_executable()
    elif wanted.runtime == TORCH:
        for precision in wanted.precisions or ():
            require_support(precision, resolve_device("auto"))
    elif not wanted.random_weights:
        require_tools([_format_of(precision) for precision in wanted.precisions or ()])


def _format_of(precision: str) -> str:
    formats = benchmarked()
    if precision not in formats:
        raise UsageError(
            f"{GENAI} has no precision {precision!r}",
            where="--precision",
            expected=", ".join(formats),
            hint="use one of these precisions",
        )
    return formats[precision]


def _refuse_stray_engines(wanted: Arms) -> None:
    if wanted.engines and (wanted.runtime != TENSORRT_LLM or len(wanted.engines) != len(wanted.models)):
        raise UsageError(
            "every MODEL needs an engine of its own",
            where="--engine",
            expected=f"--runtime {TENSORRT_LLM} and {len(wanted.models)} engines, in the order of the models",
            found=f"{wanted.runtime} and {len(wanted.engines)}",
        )


def _served(name: str, source: ModelArtifact, wanted: Arms, index: int) -> tuple[str, ModelArtifact | None]:
    """The arm of a checkpoint or of the engine built from it, named by how it is stored; and that engine."""
    from bench.design.comparisons import arm_name
    from bench.runtimes.tensorrt_llm import TensorrtLlm, stored_precision
    from compressor.runs.artifact import ModelArtifact, fingerprint_of, sha256_of_file

    engine = wanted.engines[index] if wanted.engines else None
    TensorrtLlm().check(source.path, engine=engine)
    precision = stored_precision(engine or source.path)
    if wanted.precisions not in (None, (precision,)):
        raise UsageError(
            "a server runs a model in the precision it is stored in",
            where="--precision",
            expected=precision,
            found=", ".join(wanted.precisions or ()),
        )
    arm = arm_name(name, precision)
    if engine is None:
        return arm, None
    digests = {file.name: sha256_of_file(file) for file in sorted(engine.iterdir()) if file.is_file()}
    return arm, ModelArtifact(
        path=engine,
        stage="engine",
        fingerprint=fingerprint_of(digests),
        lineage=(*source.lineage, "engine"),
        num_parameters=source.num_parameters,
    )


def _graph(
    source: ModelArtifact, precision: str, wanted: Arms, out_dir: Path, execution: Execution
) -> ModelArtifact:
    """The ONNX graph of a model, built and verified once."""
    from exporters.export_stage import export_stage

    graph = out_dir.absolute().parent / SCRATCH / f"{source.fingerprint[:16]}-{precision}"
    return execution.beside().run(export_stage(_format_of(precision)), wanted.export, source, graph)


def _shape(source: ModelArtifact) -> dict[str, int | bool | str]:
    """The fields of a checkpoint's config that say its shape."""
    from compressor.models.checkpoint import read_config
    from compressor.models.dims import dims_of_config

    return dims_of_config(read_config(source.path)).to_dict()
