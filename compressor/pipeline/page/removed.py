"""Pictures of what a cut removed: layers by their importance, and heads, neurons and channels by layer.

A row is a layer of the model that was cut, a cell one unit, or so many neighbouring ones that a row fits on
a phone. Colour says what stays and what goes; the darker a cell, the more important its units were among
those of its row. Layers that went as a whole are marked as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from compressor.forecast.schedule import Array
from compressor.models.axes import AXES
from compressor.pruning.importance import ImportanceScores
from compressor.pruning.plan import PLAN_FILE, PrunePlan, read_plan
from compressor.pruning.saved import IMPORTANCE_FILE

WIDTH, LEFT, CELL_HEIGHT = 360, 30, 7
MAX_CELLS = 64
LABEL_EVERY = 5
NUM_SHADES = 4
_NAMES = {
    "heads": "Query heads",
    "kv_heads": "Key/value heads",
    "intermediate": "MLP neurons",
    "hidden": "Hidden channels",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One drawing.

    Attributes:
        axis: Of the units, or `layers`.
        kept, of: Units that stay in every layer that stays, out of so many.
    """

    axis: str
    title: str
    svg: str
    kept: int
    of: int


def pictures_of(directory: Path) -> list[Picture]:
    """The pictures of a cut, from the plan and the scores that its stage wrote."""
    plan = read_plan(directory / PLAN_FILE)
    has_scores = (directory / IMPORTANCE_FILE).is_file()
    scores = ImportanceScores.load(directory, plan.source) if has_scores else None
    pictures = [_layers(plan, scores)]
    for name in ("heads", "kv_heads", "intermediate", "hidden"):
        if name in plan.kept and len(plan.kept[name][0]) < plan.source.units(name):
            own = scores is not None and name in scores.units and plan.rotation is None
            values = np.atleast_2d(scores.units[name].double().numpy()) if scores and own else None
            pictures.append(_units(plan, name, values))
    return pictures


def cells_of(keep_mask: Array, scores: Array | None) -> tuple[Array, Array]:
    """A row of units in at most `MAX_CELLS` cells.

    Args:
        keep_mask: `[num_units]`, 1 where a unit stays.
        scores: `[num_units]` importance, if it is known.

    Returns:
        The share of each cell's units that stays, and its rank by mean importance (0 to 1), `[cells]` each.
    """
    parts = np.array_split(np.arange(len(keep_mask)), min(MAX_CELLS, len(keep_mask)))
    kept = np.array([keep_mask[part].mean() for part in parts])
    if scores is None:
        return kept, np.ones(len(parts))
    means = np.array([scores[part].mean() for part in parts])
    return kept, means.argsort().argsort() / max(1, len(parts) - 1)


def _layers(plan: PrunePlan, scores: ImportanceScores | None) -> Picture:
    num_layers = plan.source.num_hidden_layers
    keep_mask = np.isin(np.arange(num_layers), plan.layers).astype(float)
    ranks = np.ones(num_layers)
    if scores is not None:
        ranks = np.array(scores.of_layers()).argsort().argsort() / max(1, num_layers - 1)
    row = _Row(label="", title=_row_title("layers", keep_mask), kept=keep_mask, ranks=ranks)
    return Picture(
        axis="layers",
        title=f"Layers: {len(plan.layers)} of {num_layers} stay",
        svg=_drawn([row], "layers, from the first to the last", height=3 * CELL_HEIGHT),
        kept=len(plan.layers),
        of=num_layers,
    )


def _units(plan: PrunePlan, name: str, scores: Array | None) -> Picture:
    num_units = plan.source.units(name)
    lists = plan.kept[name]
    rows = []
    layers: Sequence[int | None] = range(plan.source.num_hidden_layers) if AXES[name].is_per_layer else [None]
    for number, layer in enumerate(layers):
        if layer is not None and layer not in plan.layers:
            rows.append(_Row(label=str(layer), title=f"layer {layer}: removed", kept=None, ranks=None))
            continue
        units = lists[plan.layers.index(layer) if layer is not None else 0]
        keep_mask = np.isin(np.arange(num_units), units).astype(float)
        kept, ranks = cells_of(keep_mask, None if scores is None else scores[number])
        what = "all layers" if layer is None else f"layer {layer}"
        label = "" if layer is None else str(layer)
        rows.append(_Row(label=label, title=_row_title(what, keep_mask), kept=kept, ranks=ranks))
    num_kept = len(lists[0])
    each = " in every layer" if AXES[name].is_per_layer else ""
    return Picture(
        axis=name,
        title=f"{_NAMES[name]}: {num_kept:,} of {num_units:,} stay{each}",
        svg=_drawn(
            rows, f"{_NAMES[name]} by layer", height=CELL_HEIGHT if len(rows) > 1 else 3 * CELL_HEIGHT
        ),
        kept=num_kept,
        of=num_units,
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Cells of one layer; without any, the layer went as a whole."""

    label: str
    title: str
    kept: Array | None
    ranks: Array | None


def _row_title(what: str, keep_mask: Array) -> str:
    return f"{what}: {int(keep_mask.sum()):,} of {len(keep_mask):,} stay"


def _drawn(rows: Sequence[_Row], title: str, *, height: int) -> str:
    parts = []
    for number, row in enumerate(rows):
        top = number * (height + 1)
        parts.append(f"<g><title>{escape(row.title)}</title>{_row(row, top, height)}")
        if row.label and number % LABEL_EVERY == 0:
            parts.append(
                f'<text class="tick end" x="{LEFT - 4}" y="{top + height}">{escape(row.label)}</text>'
            )
        parts.append("</g>")
    total = len(rows) * (height + 1) + 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {total}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _row(row: _Row, top: int, height: int) -> str:
    """A path for each shade of what stays and of what goes, which is the upper part of a cell."""
    if row.kept is None or row.ranks is None:
        return f'<rect class="whole" x="{LEFT}" y="{top}" width="{WIDTH - LEFT}" height="{height}"/>'
    step = (WIDTH - LEFT) / len(row.kept)
    gap = 0.15 * step if len(row.kept) <= MAX_CELLS // 2 else 0.0
    paths: dict[str, list[str]] = {}
    for index, (kept, rank) in enumerate(zip(row.kept, row.ranks, strict=True)):
        shade = min(NUM_SHADES - 1, int(rank * NUM_SHADES))
        left, width, gone = LEFT + index * step, step - gap, height * (1 - kept)
        for kind, y, tall in (("gone", top, gone), ("kept", top + gone, height - gone)):
            if tall > 0:
                box = f"M{left:.1f} {y:.1f}h{width:.1f}v{tall:.1f}h-{width:.1f}z"
                paths.setdefault(f"{kind} s{shade}", []).append(box)
    return "".join(f'<path class="{kind}" d="{"".join(boxes)}"/>' for kind, boxes in sorted(paths.items()))
