"""Layer times of this machine: what they are kept under, and measuring them with random weights."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.api.execution import SCRATCH
from compressor.choices.formats import options
from compressor.choices.runtimes import CHECKPOINT, RUNTIMES, Runtime, runtime_named
from compressor.core.console import Console
from compressor.core.errors import ResourceError, VerificationError
from compressor.core.hardware import cpu_name, free_disk_bytes, resolve_device
from compressor.models.dims import Dims, num_parameters, weight_bytes
from compressor.planning.layer_times import (
    Key,
    LayerTimes,
    SizeTimes,
    depths_to_measure,
    keep_times,
    read_begun,
    sizes_to_measure,
)
from compressor.planning.outcome import Question
from compressor.recipe.recipe import Recipe
from compressor.runs.inputs import version_of

if TYPE_CHECKING:
    from bench.measure.layer_times import ModelTimes


def key_of(question: Question, teacher: Dims) -> Key | None:
    """What layer times have to be of; None for a runtime that runs no random weights."""
    row = runtime_named(question.runtime or "")
    if row.random_weights is None or question.isl is None or question.osl is None:
        return None
    return Key(
        machine=_machine(row),
        runtime=row.name,
        versions={name: version_of(name) for name in row.requires},
        precision=question.precision,
        model=teacher,
        isl=question.isl,
        osl=question.osl,
        batch_size=question.batch_size,
    )


def times_directory(recipe: Recipe, out_dir: Path) -> Path:
    """Where layer times are kept: as the recipe says, by default beside the output directory."""
    given = recipe.outcome.layer_times
    return Path(given) if given else out_dir.absolute().parent / SCRATCH


def measure_layers(
    recipe: Recipe, question: Question, teacher: Dims, out_dir: Path, console: Console
) -> None:
    """Time layers of a few sizes in the question's runtime and cell, with random weights, and keep the table.

    Raises:
        DependencyError, UnsupportedError: for a runtime or precision that does not run here.
        ResourceError: for models that the disk has no room for.
        VerificationError: for a model that the runtime does not run.
    """
    key = key_of(question, teacher)
    assert key is not None, "asked of runtimes that run random weights"
    directory = times_directory(recipe, out_dir)
    pairs = [(size, depths_to_measure(size, key.precision)) for size in sizes_to_measure(teacher)]
    models = [size.with_shape(num_hidden_layers=depth) for size, depths in pairs for depth in depths]
    _require_room(models, directory)
    console.info(f"layer times: {len(models)} models of random weights in {key.runtime} on {key.machine}")
    begun = read_begun(directory, key)
    sizes = {(size.hidden_size, size.intermediate_size): size for size in (begun.sizes if begun else ())}
    with console.progress("layer times", len(pairs)) as tick:
        for number, (size, depths) in enumerate(pairs, 1):
            width = (size.hidden_size, size.intermediate_size)
            if width not in sizes:
                sizes[width] = _time_size(size, depths, key, directory, console)
                is_complete = number == len(pairs)
                times = LayerTimes(key=key, sizes=tuple(sizes.values()), is_complete=is_complete)
                keep_times(directory, times)
            tick(f"hidden size {width[0]}, intermediate size {width[1]}, {depths[0]} and {depths[1]} layers")


def _time_size(size: Dims, depths: tuple[int, int], key: Key, directory: Path, console: Console) -> SizeTimes:
    first, second = (
        _time(size.with_shape(num_hidden_layers=depth), key, directory, console) for depth in depths
    )
    return SizeTimes(
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        depths=depths,
        prefill_s=(first.prefill_s, second.prefill_s),
        step_s=(first.step_s, second.step_s),
    )


def _machine(row: Runtime) -> str:
    """What executes a model in this runtime, as far as speed depends on it."""
    from bench.machine.environment import num_usable_cores

    if row.reads == CHECKPOINT and resolve_device("auto") == "cuda":
        from bench.machine.machine_rates import device_name

        return device_name("cuda")
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{cpu_name()}, {num_usable_cores()} cores" + (f", {threads} threads" if threads else "")


def _require_room(models: list[Dims], directory: Path) -> None:
    """Refuse when a model's weights and their export do not fit on the disk together."""
    largest = max(models, key=num_parameters)
    needed, free = weight_bytes(largest, "bf16") + weight_bytes(largest, "fp32"), free_disk_bytes(directory)
    if free < needed:
        raise ResourceError(
            "not enough disk to measure layer times",
            where=str(directory),
            expected=f"{needed:,} bytes free",
            found=f"{free:,} bytes free",
            hint="free disk space, or name a directory on another disk with --layer-times",
        )


def _time(dims: Dims, key: Key, directory: Path, console: Console) -> ModelTimes:
    """Make one model of random weights, time it and delete it."""
    from bench.design.arms import Arm
    from bench.design.grid import Cell
    from bench.design.shape_only import write_shape
    from bench.measure.layer_times import time_model
    from compressor.api.random_models import random_export

    row = RUNTIMES[key.runtime]
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        model = write_shape(dims, Path(scratch) / "shape")
        if row.reads != CHECKPOINT:
            form = options()[row.reads][key.precision]
            place = Path(scratch) / "export"
            place.mkdir()
            model = random_export(model, form, place, console=console, keep=False)
        arm = Arm(
            id=f"{dims.hidden_size}-{dims.intermediate_size}-{dims.num_hidden_layers}",
            model="random weights",
            precision=key.precision,
            path=model.path,
            runtime=row.name,
            num_parameters=model.num_parameters,
            dims=dims,
            has_random_weights=True,
        )
        try:
            return time_model(arm, Cell(key.isl, key.osl, key.batch_size), seed=0)
        except (RuntimeError, ResourceError) as error:
            raise VerificationError(
                f"{row.name} did not run a model of random weights",
                where=f"{dims.hidden_size} wide, {dims.num_hidden_layers} layers",
                found=str(error).replace(scratch, ""),
                hint="use shorter --isl-osl or a smaller --batch-size, or name a size with --target",
            ) from error
