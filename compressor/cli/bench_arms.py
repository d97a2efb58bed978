"""From MODELs on the command line to the arms of a benchmark, by runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.choices.formats import benchmarked
from compressor.core.errors import UsageError

if TYPE_CHECKING:
    from compressor.core.console import Console
    from compressor.recipe.recipe import Recipe
    from compressor.runs.artifact import ModelArtifact

GENAI, TORCH, TENSORRT_LLM = "onnxruntime-genai", "torch-eager", "tensorrt-llm"


def open_arms(
    models: tuple[str, ...], recipe: Recipe, out_dir: Path, flags: dict[str, Any], console: Console
) -> tuple[ModelArtifact, dict[str, ModelArtifact], dict[str, ModelArtifact], dict[str, dict[str, Any]]]:
    """The first model, every arm by name, the engines that arms run, and every model's dimensions.

    Raises:
        UsageError: for a precision or random weights that the runtime does not take.
    """
    from bench.bench_stage import engine_of
    from bench.design.comparisons import arm_name
    from compressor.models.load import distinct_names

    _refuse_stray_engines(models, flags)
    _refuse_early(models, out_dir, flags, console)
    sources = _sources(models, out_dir, flags)
    names = [name.replace(":", "-") for name in distinct_names(models)]
    arms: dict[str, ModelArtifact] = {}
    engines: dict[str, ModelArtifact] = {}
    for index, (name, source) in enumerate(zip(names, sources, strict=True)):
        if flags["runtime"] == TENSORRT_LLM:
            arm, engine = _served(name, source, flags, index)
            arms[arm] = source
            engines |= {engine_of(arm): engine} if engine else {}
            continue
        for precision in flags["precisions"]:
            arms[arm_name(name, precision)] = (
                _graph(source, precision, recipe, out_dir, flags, console)
                if flags["runtime"] == GENAI
                else source
            )
    shapes = {name: _config(source) for name, source in zip(names, sources, strict=True)}
    return sources[0], arms, engines, shapes


def _sources(models: tuple[str, ...], out_dir: Path, flags: dict[str, Any]) -> list[ModelArtifact]:
    from bench.design.shape_only import shape_of, write_shape
    from compressor.cli.stage_command import SCRATCH, open_model

    if not flags["random_weights"]:
        return [open_model(model, out_dir, flags) for model in models]
    if flags["runtime"] != TORCH:
        raise UsageError(
            "random weights are drawn by torch; a graph or a server would need them on disk",
            where="--random-weights",
            hint=f"--runtime {TORCH}",
        )
    scratch = out_dir.absolute().parent / SCRATCH / "shapes"
    directories = [scratch / model.replace(":", "-") for model in models]
    return [
        write_shape(shape_of(model), directory) for model, directory in zip(models, directories, strict=True)
    ]


def _refuse_early(models: tuple[str, ...], out_dir: Path, flags: dict[str, Any], console: Console) -> None:
    """Refuse what would end the work later, before a model is read.

    Raises:
        UsageError, UnsupportedError, DependencyError: a path, a precision, or a runtime that is
            not installed.
    """
    from bench.runtimes.tensorrt_llm import require_executable
    from bench.runtimes.torch_linear import require_support
    from compressor.cli.cheap_checks import check_early
    from compressor.core.hardware import resolve_device
    from exporters.registry import require_tools

    check_early(out_dir, flags, console, models=() if flags["random_weights"] else models)
    if flags["runtime"] == TENSORRT_LLM:
        require_executable()
    elif flags["runtime"] == TORCH:
        for precision in flags["precisions"]:
            require_support(precision, resolve_device("auto"))
    elif not flags["random_weights"]:
        require_tools([_format_of(precision) for precision in flags["precisions"]])


def _format_of(precision: str) -> str:
    formats = benchmarked()
    if precision not in formats:
        raise UsageError(
            f"{GENAI} has no precision {precision!r}", where="--precision", expected=", ".join(formats)
        )
    return formats[precision]


def _refuse_stray_engines(models: tuple[str, ...], flags: dict[str, Any]) -> None:
    engines = flags["engines"]
    if engines and (flags["runtime"] != TENSORRT_LLM or len(engines) != len(models)):
        raise UsageError(
            "every MODEL needs an engine of its own",
            where="--engine",
            expected=f"--runtime {TENSORRT_LLM} and {len(models)} engines, in the order of the models",
            found=f"{flags['runtime']} and {len(engines)}",
        )


def _served(
    name: str, source: ModelArtifact, flags: dict[str, Any], index: int
) -> tuple[str, ModelArtifact | None]:
    """The arm of a checkpoint or of the engine built from it, named by how it is stored; and that engine."""
    from bench.design.comparisons import arm_name
    from bench.runtimes.tensorrt_llm import TensorrtLlm, stored_precision
    from compressor.runs.artifact import ModelArtifact, fingerprint_of, sha256_of_file

    engine = Path(flags["engines"][index]) if flags["engines"] else None
    TensorrtLlm().check(source.path, engine=engine)
    precision = stored_precision(engine or source.path)
    if flags["precisions"] not in (None, (precision,)):
        raise UsageError(
            "a server runs a model in the precision it is stored in",
            where="--precision",
            expected=precision,
            found=", ".join(flags["precisions"]),
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
    source: ModelArtifact,
    precision: str,
    recipe: Recipe,
    out_dir: Path,
    flags: dict[str, Any],
    console: Console,
) -> ModelArtifact:
    """The ONNX graph of a model, built and verified once."""
    from compressor.cli.stage_command import SCRATCH, execute_stage
    from exporters.export_stage import export_stage

    graph = out_dir.absolute().parent / SCRATCH / f"{source.fingerprint[:16]}-{precision}"
    stage = export_stage(_format_of(precision))
    return execute_stage(stage, recipe.export, source, graph, {**flags, "resume": False}, console)


def _config(source: ModelArtifact) -> dict[str, Any]:
    """The fields of a checkpoint's config that say its shape."""
    from compressor.models.checkpoint import read_config
    from compressor.models.dims import dims_of_config

    return dims_of_config(read_config(source.path)).to_dict()
