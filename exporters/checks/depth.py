"""What was measured without layers, against the plan that was made of it.

The losses themselves would need the text and the model again. What follows from them does not: every curve
has an entry for each position, and the removed layers are those that are missed least, found here anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from safetensors import safe_open

from compressor.core.errors import VerificationError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.pruning.depth_record import DEPTH_FILE, DepthRecord, Measured
from exporters.checks.equality import expect_equal


def check_depth(directory: Path, details: Mapping[str, object]) -> dict[str, JsonValue]:
    """Refuse a record of removed layers that contradicts itself, or what the prune stage reports.

    Returns what was found; nothing where nothing was measured.
    """
    file = directory / DEPTH_FILE
    if "depth" not in details and not file.is_file():
        return {}
    what = "what was measured without layers"
    record = as_record(DepthRecord, read_json_mapping(file, what=what), what=what, where=file)
    removed = list(record.removed_layers)
    expect_equal("other layers were removed", removed, details.get("removed_layers"), where=str(file))
    curves = {curve.size: curve.without for curve in record.curves}
    for size, without in curves.items():
        positions = record.num_layers - size + 1
        expect_equal("a curve has a wrong length", positions, len(without), where=f"{file}: {size} layers")
    if record.removal == "contiguous":
        without = curves.get(len(removed), ())
        wanted = [start + index for start in _first_best(without, file) for index in range(len(removed))]
        expect_equal("another block of layers is missed least", wanted, removed, where=str(file))
        left = without[removed[0]]
    else:
        chosen = [removal.layer for removal in record.removals]
        expect_equal("not the layers that were removed one by one", sorted(chosen), removed, where=str(file))
        wanted = _first_best(curves.get(1, ()), file)
        expect_equal("another single layer is missed least", wanted, chosen[:1], where=str(file))
        left = record.removals[-1].without
    said = {"importance": record.importance, "whole": record.whole.to_json(), "without": left.to_json()}
    expect_equal("the stage reports other figures", said, details.get("depth"), where=str(file))
    return {"num_measured_removals": sum(map(len, curves.values()))}


def check_layer_importance(directory: Path, details: Mapping[str, object]) -> None:
    """Refuse a report of the layers' importance that is not what the file of scores says of single layers."""
    reported, file = details.get("layer_importance"), directory / "importance.safetensors"
    if reported is None:
        return
    with safe_open(file, framework="pt") as scores:
        blocks = scores.get_tensor("blocks")
    own = [f"{float(blocks[layer, layer + 1]):.6g}" for layer in range(len(blocks) - 1)]
    found = [f"{score:.6g}" for score in reported] if isinstance(reported, list) else reported
    expect_equal("the stage reports another importance of its layers", own, found, where=str(file))


def _first_best(without: tuple[Measured, ...], file: Path) -> list[int]:
    """The position of the highest accuracy, of these of the least loss, of these the first."""
    if not without:
        raise VerificationError("the removed layers were not measured", where=str(file))
    accurate = max(found.accuracy or 0.0 for found in without)
    best = [index for index, found in enumerate(without) if (found.accuracy or 0.0) == accurate]
    least = min(without[index].loss for index in best)
    return [next(index for index in best if without[index].loss == least)]
