"""The bench stage: measures the context's arms against each other and writes the reports."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import Field

from bench.design.arms import Arm, Comparison
from bench.design.cells import NUM_SERIES
from bench.design.comparisons import parts_of_arm
from bench.design.shape_only import is_shape_only
from bench.machine.machine_rates import machine_rates
from bench.machine.roofline import compute_precision
from bench.measure.measure import run_bench
from bench.measure.serving import run_serving
from bench.report.results import NotMeasured, Quality
from bench.report.write import write_reports
from bench.runtimes.base import StaticRuntime
from compressor.choices.runtimes import RUNTIMES, runtime_named
from compressor.core.errors import UnsupportedError, UsageError
from compressor.core.json_files import read_json_mapping
from compressor.models.dims import Dims, dims_of_config
from compressor.recipe.option import content_of, unless_neutral
from compressor.recipe.recipe import Bench, Section
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult

# Beside the output directory; not part of a result, so it survives it.
SCRATCH = ".compress-export"
_CONFIG_FILE = "config.json"


class BenchStageConfig(Section):
    """The recipe's section, what is compared, and what was found elsewhere.

    `comparisons` are pairs of names in the context's `others`: baseline, candidate. A model that runs as an
    engine has that there too, as `engine_of` its name. `shapes` are dimensions, by model, of those whose
    directory does not tell them.
    """

    bench: Bench
    comparisons: tuple[tuple[str, str], ...]
    not_measured: tuple[NotMeasured, ...] = ()
    quality: tuple[Quality, ...] = ()
    shapes: dict[str, dict[str, int | bool | str]] = Field(default_factory=dict)


def run(config: BenchStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Measure every comparison and write the reports."""
    names = dict.fromkeys(name for pair in config.comparisons for name in pair)
    arms = {name: _arm(name, context.others, config) for name in names}
    comparisons = [
        Comparison(baseline=arms[first], candidate=arms[second]) for first, second in config.comparisons
    ]
    measure = run_serving
    if not config.bench.row.serves:
        kept = out_dir.absolute().parent / SCRATCH
        rates = machine_rates(kept, device=_device(arms), precisions=_computed(arms))
        measure = partial(run_bench, rates=rates)
    results = measure(
        comparisons,
        config.bench,
        console=context.console,
        seed=context.seed,
        not_measured=config.not_measured,
        quality=config.quality,
    )
    write_reports(results, out_dir)
    return StageResult(num_parameters=source.num_parameters, details=results.to_json())


def engine_of(arm: str) -> str:
    """The role, in the context's `others`, of the TensorRT engine that an arm runs."""
    return f"engine of {arm}"


def _arm(name: str, artifacts: dict[str, ModelArtifact], config: BenchStageConfig) -> Arm:
    artifact, engine = artifacts[name], artifacts.get(engine_of(name))
    model, precision = parts_of_arm(name)
    return Arm(
        id=name,
        model=model,
        precision=precision,
        path=artifact.path,
        runtime=config.bench.row.name,
        num_parameters=artifact.num_parameters,
        dims=_dims(artifact.path, config.shapes.get(model)),
        has_random_weights=is_shape_only(artifact.path),
        engine=engine.path if engine else None,
    )


def _device(arms: dict[str, Arm]) -> str:
    """What executes all arms; a UsageError when not one device: their ratio would be that of two machines."""
    found: dict[str, str] = {}
    for name, arm in arms.items():
        runtime: StaticRuntime = runtime_named(arm.runtime).load()
        runtime.check(arm.path, precision=arm.precision)
        found[name] = runtime.device(arm.path)
    if len(set(found.values())) > 1:
        raise UsageError(
            "these models run on different devices",
            where="bench",
            found=", ".join(f"{name} on {device}" for name, device in found.items()),
            hint="export the models for one device, or hide GPUs: CUDA_VISIBLE_DEVICES= before the command",
        )
    return next(iter(found.values()))


def _computed(arms: dict[str, Arm]) -> set[str]:
    """The precisions that the arms multiply in."""
    return {name for arm in arms.values() if (name := compute_precision(arm.precision))}


def _dims(directory: Path, given: dict[str, int | bool | str] | None) -> Dims | None:
    """The shape that was given, else that of the directory's config, else None."""
    file = directory / _CONFIG_FILE
    if given is None and not file.is_file():
        return None
    config: dict[str, object] = dict(given or read_json_mapping(file, what=_CONFIG_FILE))
    try:
        return dims_of_config(config)
    except UnsupportedError:
        return None


def _content(config: BenchStageConfig) -> dict[str, object]:
    """What decides the numbers; as many series as ever are what they were before they had a number."""
    content = content_of(config)
    return {**content, "bench": unless_neutral(content_of(config.bench), num_series=NUM_SERIES)}


BENCH: Stage[BenchStageConfig] = Stage(
    name="bench",
    run=run,
    content=_content,
    libraries=tuple(name for runtime in RUNTIMES.values() for name in runtime.requires),
    format_version=5,
)
