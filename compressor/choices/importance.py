"""The table of importance methods: what decides which units of a model are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.core.lazy import resolve


@dataclass(frozen=True, kw_only=True)
class ImportanceMethod:
    """One row.

    Attributes:
        name: What recipes and the command line call it.
        help: One line that describes it.
        place: "module:function", called with `compressor.pruning.importance.ScoringInputs`; it returns
            `ImportanceScores`.
        needs_text: Whether it runs the model over the calibration text.
    """

    name: str
    help: str
    place: str
    needs_text: bool = False

    def load(self) -> Any:
        """The function that scores."""
        return resolve(self.place)


_ROWS = (
    ImportanceMethod(
        name="activation",
        help="Size of the activations of each channel, head or layer on the calibration text (Minitron).",
        place="compressor.pruning.importance:activation_method",
        needs_text=True,
    ),
    ImportanceMethod(
        name="weight-magnitude",
        help="Norm of the weights of each channel, head or layer; needs no text.",
        place="compressor.pruning.importance:weight_magnitude_method",
    ),
    ImportanceMethod(
        name="random",
        help="Random scores from --seed, as a baseline for comparisons.",
        place="compressor.pruning.importance:random_method",
    ),
)
IMPORTANCE_METHODS: dict[str, ImportanceMethod] = {row.name: row for row in _ROWS}
