"""Times of decoder layers, measured on one machine with random weights, and what they say of a whole model.

Of a few sizes of layer a shallow and a deeper model were timed. Their difference is the layers' time, the
rest that of everything outside them (embedding, LM head, the runtime itself). A layer's time is interpolated
over the parameters of its linear layers, the rest over the hidden size; a model's time is the sum.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.core.json_files import as_record, read_json_mapping
from compressor.core.records import Record
from compressor.models.dims import Dims, num_linear_parameters, weight_bytes
from compressor.planning.outcome import rule_shapes
from compressor.runs.artifact import fingerprint_of, write_json

SCHEMA: Literal["compress-export/layer-times/1"] = "compress-export/layer-times/1"
Seconds = Annotated[float, Field(gt=0)]
Times = tuple[Seconds, Seconds]
NUM_SIZES = 3
# What a step reads has to come from memory, as in the whole model: more than a processor's caches hold.
_BEYOND_CACHES = 1 << 27
_AGAIN = "delete the file: a run then measures the layers again"


class Key(Record):
    """What measured times are valid for.

    Attributes:
        machine: The processor and its usable cores, or the GPU.
        versions: Of the distributions that decide the runtime's speed.
        model: The model whose layers were measured, and narrower ones.
    """

    machine: str
    runtime: str
    versions: dict[str, str]
    precision: str
    model: Dims
    isl: int
    osl: int
    batch_size: int


class SizeTimes(Record):
    """One size of layer, in two models of so many `depths`: seconds of the prompt and of one decode step."""

    hidden_size: int
    intermediate_size: int
    depths: tuple[int, int]
    prefill_s: Times
    step_s: Times

    @model_validator(mode="after")
    def _deepens(self) -> SizeTimes:
        if not 0 < self.depths[0] < self.depths[1]:
            raise ValueError("the second of the depths is not larger")
        return self


class LayerTimes(Record):
    """A table of times, as it is kept in a file.

    Attributes:
        is_complete: Whether every size is there; a table that is not yet is continued.
    """

    schema_id: Literal["compress-export/layer-times/1"] = Field(SCHEMA, alias="schema")
    key: Key
    sizes: tuple[SizeTimes, ...] = Field(min_length=1)
    is_complete: bool = True

    def prefill_s(self, dims: Dims) -> float:
        """Seconds from a prompt to the first token."""
        return self._model_s(dims, [(size, size.prefill_s) for size in self.sizes])

    def step_s(self, dims: Dims) -> float:
        """Seconds of one decode step in the middle of the generation, for every sequence a token."""
        return self._model_s(dims, [(size, size.step_s) for size in self.sizes])

    def latency_s(self, dims: Dims) -> float:
        """Seconds from a prompt to the last token."""
        return self.prefill_s(dims) + (self.key.osl - 1) * self.step_s(dims)

    def _model_s(self, dims: Dims, timed: list[tuple[SizeTimes, Times]]) -> float:
        layer, outside = [], []
        for size, times in timed:
            one, rest = split_times(size.depths, times)
            shape = {"hidden_size": size.hidden_size, "intermediate_size": size.intermediate_size}
            layer.append((float(_layer_parameters(self.key.model.with_shape(**shape))), one))
            outside.append((float(size.hidden_size), rest))
        own = interpolate(layer, _layer_parameters(dims))
        return dims.num_hidden_layers * own + interpolate(outside, dims.hidden_size)


def sizes_to_measure(teacher: Dims) -> tuple[Dims, ...]:
    """Of the rule's widths those whose layers are evenly spread in size, from teacher to smallest."""
    widths = {
        _layer_parameters(dims): teacher.with_shape(
            hidden_size=dims.hidden_size, intermediate_size=dims.intermediate_size
        )
        for dims in (teacher, *(resolved.student for resolved in rule_shapes(teacher)))
    }
    largest, smallest = max(widths), min(widths)
    wanted = [largest - (largest - smallest) * place / (NUM_SIZES - 1) for place in range(NUM_SIZES)]
    chosen = (min(widths, key=lambda size: abs(size - place)) for place in wanted)
    return tuple(widths[size] for size in dict.fromkeys(chosen))


def depths_to_measure(dims: Dims, precision: str) -> tuple[int, int]:
    """The layers of the shallow and of the deeper model of one width.

    The shallow one no longer fits the caches, and the deeper one's further layers weigh as much as it does;
    but neither is deeper than needed where a whole model is that small.
    """
    dense = precision.partition("+")[0]
    without = weight_bytes(dims.with_shape(num_hidden_layers=0), dense)
    layer = weight_bytes(dims.with_shape(num_hidden_layers=1), dense) - without
    shallow = min(max(1, -(-(_BEYOND_CACHES - without) // layer)), max(1, dims.num_hidden_layers // 2))
    further = max(1, -(-(without + shallow * layer) // layer))
    return shallow, min(shallow + further, max(shallow + 1, dims.num_hidden_layers))


def split_times(depths: tuple[int, int], times: Times) -> tuple[float, float]:
    """Seconds of one layer, and outside the layers, from models of two depths; neither is below zero."""
    (shallow, deep), (first, second) = depths, times
    layer = max(0.0, (second - first) / (deep - shallow))
    outside = first - shallow * layer
    return (layer, outside) if outside >= 0 else (second / deep, 0.0)


def interpolate(points: list[tuple[float, float]], at: float) -> float:
    """A value between those of the neighbouring points, in proportion; beyond the last two along their line.

    Points at the same place count as one, with their mean. A value is never below zero.
    """
    places = sorted({place for place, _ in points})
    means = {
        place: sum(own) / len(own)
        for place in places
        if (own := [value for other, value in points if other == place])
    }
    if len(places) == 1:
        return means[places[0]]
    below, above = next(
        ((low, high) for low, high in pairwise(places) if at <= high), (places[-2], places[-1])
    )
    slope = (means[above] - means[below]) / (above - below)
    return max(0.0, means[below] + slope * (at - below))


def file_of(directory: Path, key: Key) -> Path:
    """Where the times of a model in a runtime are kept, whatever machine they are of."""
    shape = fingerprint_of({"model": key.model.to_dict()})[:8]
    cell = f"{key.isl}-{key.osl}-{key.batch_size}"
    return directory / f"layer_times-{key.runtime}-{key.precision}-{cell}-{shape}.json"


def read_times(directory: Path, key: Key) -> LayerTimes | None:
    """The complete times that are kept for this key.

    None where there are none, or another machine's or version's.

    Raises:
        VerificationError: for a file that cannot be read.
    """
    found = read_begun(directory, key)
    return found if found is not None and found.is_complete else None


def read_begun(directory: Path, key: Key) -> LayerTimes | None:
    """The same, complete or not.

    Raises:
        VerificationError: for a file that cannot be read.
    """
    file, what = file_of(directory, key), "the file of layer times"
    if not file.is_file():
        return None
    record = as_record(LayerTimes, read_json_mapping(file, what=what), what=what, where=file, hint=_AGAIN)
    return record if record.key == key else None


def keep_times(directory: Path, times: LayerTimes) -> None:
    """Write the file, in place of one of another machine or version."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(file_of(directory, times.key), times.to_json())


def _layer_parameters(dims: Dims) -> int:
    return num_linear_parameters(dims) // dims.num_hidden_layers
