"""A graph's rope tables: the cosine and sine of every position and channel, as transformers computes them.

A graph holds its rope as two tables, `[context, rotated channels / 2]`. Where the builder does not know a
form of scaling, it is given the same checkpoint with plain rope, and the tables are overwritten in place:
the form is then in the tables alone, and the graph is what it would have been. Whoever wrote them, they
are compared with those of transformers' own class.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE, read_config
from compressor.models.config.portable import portable_config
from exporters.checks.equality import expect_equal
from exporters.onnx.builder import GRAPH_FILE, load_graph
from exporters.onnx.expressible import builder_knows_rope, class_name
from exporters.onnx.weights import TABLES, read_initialiser

# An angle is a position times a frequency, both rounded to float32, so its error grows with the position.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3}
_TOLERANCE_PER_POSITION = 3e-7
_ROPE_FIELDS = ("rope_scaling", "rope_parameters")


@contextmanager
def buildable(checkpoint: Path, config: dict[str, object]) -> Iterator[Path]:
    """The checkpoint itself, or a view of it whose config the builder reads right.

    The view has plain rope where the builder does not know its form, no window where it spans the whole
    context, and the class of its `model_type` where the config names none.
    """
    plain = {"architectures": [class_name(config)], **config}
    if not builder_knows_rope(config):
        theta = portable_config(config)["rope_theta"]
        plain = {key: value for key, value in plain.items() if key not in _ROPE_FIELDS}
        plain |= {"rope_theta": theta, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    if config.get("use_sliding_window"):
        plain = {key: value for key, value in plain.items() if key != "layer_types"}
        plain |= {"use_sliding_window": False, "sliding_window": None}
    if plain == config:
        yield checkpoint
        return
    with TemporaryDirectory(prefix="buildable-") as directory:
        view = Path(directory)
        for path in checkpoint.iterdir():
            if path.is_file() and path.name != CONFIG_FILE:
                (view / path.name).symlink_to(path.resolve())
        (view / CONFIG_FILE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        yield view


def write_tables(directory: Path, student: Path) -> None:
    """Overwrite a graph's tables with those of transformers' class, where the builder does not know them."""
    config = read_config(student)
    if builder_knows_rope(config):
        return
    import onnx

    graph = load_graph(directory)
    stored = _stored_tables(graph)
    for name, wanted in expected_tables(student, stored[TABLES[0]].dims[0]).items():
        entry = stored[name]
        values = wanted.numpy().astype(onnx.helper.tensor_dtype_to_np_dtype(entry.data_type)).tobytes()
        if entry.data_location == onnx.TensorProto.EXTERNAL:
            place = {pair.key: pair.value for pair in entry.external_data}
            with (directory / Path(place["location"]).name).open("r+b") as file:
                file.seek(int(place.get("offset", 0)))
                file.write(values)
        else:
            entry.raw_data = values
    (directory / GRAPH_FILE).write_bytes(graph.SerializeToString())


def check_tables(directory: Path, student: Path) -> int:
    """Compare a graph's tables with those of transformers' class; returns the number of positions.

    A table that is missing, short or different is a VerificationError.
    """
    stored = _stored_tables(load_graph(directory))
    num_positions = int(stored[TABLES[0]].dims[0])
    for name, wanted in expected_tables(student, num_positions).items():
        found = read_initialiser(stored[name], directory)
        expect_equal("a rope table has another shape", list(wanted.shape), list(found.shape), where=name)
        bounds = _TOLERANCE[found.dtype] + _TOLERANCE_PER_POSITION * torch.arange(num_positions)
        difference = (found.float() - wanted).abs().amax(-1)
        excess = (difference / (bounds * wanted.abs().max())).nan_to_num(nan=torch.inf)
        position = int(excess.argmax())
        if excess[position] > 1:
            raise VerificationError(
                "the graph's rope is not the student's",
                where=f"{name}, position {position}",
                expected=f"transformers' table, within {bounds[position]:.3g}",
                found=f"a difference of {difference[position]:.3g}",
            )
    return num_positions


def expected_tables(student: Path, num_positions: int) -> dict[str, torch.Tensor]:
    """Cosine and sine of every position and rotated channel pair, float32, by transformers' own class."""
    rotary = rotary_of(student)
    positions = torch.arange(num_positions)[None]
    with torch.no_grad():
        tables = rotary(torch.zeros(1, dtype=torch.float32), positions)
    half = [table[0, :, : table.shape[-1] // 2].contiguous() for table in tables]
    return dict(zip(TABLES, half, strict=True))


def rotary_of(student: Path) -> Any:
    """Transformers' own module that computes cosine and sine for a student's config."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(student, local_files_only=True)
    name = config.model_type
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    return getattr(module, f"{name.capitalize()}RotaryEmbedding")(config=config)


def _stored_tables(graph: Any) -> dict[str, Any]:
    stored = {entry.name: entry for entry in graph.graph.initializer if entry.name in TABLES}
    if missing := sorted(set(TABLES) - set(stored)):
        raise VerificationError("the graph lacks a rope table", where=missing[0])
    return stored
