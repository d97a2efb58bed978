"""The table of importance methods: what decides which units of a model are kept."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.choices.row import Row, table


@dataclass(frozen=True, kw_only=True)
class ImportanceMethod(Row):
    """A function of `compressor.pruning.importance.ScoringInputs` that returns `ImportanceScores`.

    Attributes:
        needs_text: Whether it runs the model over the calibration text.
        needs_gradients: Whether it does so in float32, with a gradient of every weight in memory.
        aggregates: Whether activations are aggregated over tokens and sequences, as the recipe says.
        trains: Whether it is a stage that trains on the training text, instead of such a function.
    """

    needs_text: bool = False
    needs_gradients: bool = False
    aggregates: bool = False
    trains: bool = False


IMPORTANCE_METHODS = table(
    ImportanceMethod(
        name="activation",
        help="Size of the activations of each channel, head or layer on the calibration text (Minitron).",
        code="compressor.pruning.importance:activation_method",
        needs_text=True,
        aggregates=True,
    ),
    ImportanceMethod(
        name="weight-magnitude",
        help="Norm of the weights of each channel, head or layer; needs no text.",
        code="compressor.pruning.importance:weight_magnitude_method",
    ),
    ImportanceMethod(
        name="taylor",
        help="Sum of |weight * gradient| over each channel, head or layer (LLM-Pruner); needs gradients.",
        code="compressor.pruning.importance:taylor_method",
        needs_text=True,
        needs_gradients=True,
    ),
    ImportanceMethod(
        name="random",
        help="Random scores from --seed, as a baseline for comparisons.",
        code="compressor.pruning.importance:random_method",
    ),
    ImportanceMethod(
        name="learned-masks",
        help="Masks trained to the student's shape, with the weights (Sheared LLaMA); see Learned masks.",
        code="compressor.masks.learn_stage:LEARN",
        trains=True,
    ),
)
