"""The recipe's sections about making a model smaller without training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.recipe.forms import Integers, Shape
from compressor.recipe.option import OneOf, Section, option
from compressor.recipe.training import DEFAULT_TEXT, TEXT_FORMS

# To fit, to choose the ridge, and to accept.
FEWEST_REPAIR_SEQUENCES = 3
# Of one gradient step, as far as whole sequences fill them.
REPAIR_STEP_TOKENS = 2048

Importance = Annotated[str, AfterValidator(OneOf(IMPORTANCE_METHODS))]
Aggregation = Literal["mean", "l2", "var"]


class Calibration(Section):
    """Text that only sets statistics: importance scores and FP8 scales."""

    heading: ClassVar[str] = "Calibration"
    prefix: ClassVar[str] = "calib"

    data: str = option(DEFAULT_TEXT, f"Calibration text: {TEXT_FORMS}.", metavar="SOURCE")
    size: int = option(
        1024, "Number of calibration sequences, taken from all of the text that is not held out.", ge=1
    )
    seq_len: int = option(2048, "Tokens per calibration sequence.", ge=8)
    documents: int = option(
        10_000, "Take calibration sequences from the first N documents of a hub data set.", ge=1, metavar="N"
    )


class Prune(Section):
    """What makes a unit important, and an explicit shape instead of a target."""

    importance: Importance = option("activation", "How the importance of channels and layers is measured.")
    batch_aggregation: Aggregation = option(
        "l2", "How activations are aggregated over the calibration sequences: mean, L2 norm or variance."
    )
    sequence_aggregation: Aggregation = option(
        "l2",
        "How activations are aggregated over the tokens of a sequence: mean (as Minitron published), L2 norm "
        "or variance.",
    )
    depth: Literal["auto", "contiguous", "scattered"] = option(
        "auto",
        "Which layers are removed. contiguous: the least important block of neighbouring layers; scattered: "
        "the layers that are least important by themselves; auto: a contiguous block where at least half of "
        "the layers go, otherwise scattered layers.",
        flag="--depth-removal",
    )
    hidden: Literal["channels", "rotation"] = option(
        "channels",
        "How the hidden size is reduced. channels: keep the most important channels; rotation: keep the "
        "principal components of the hidden states on the calibration text. By rotation, the student of a "
        "model whose LM head is its embedding gets an LM head of its own, which counts in its size.",
        flag="--hidden-removal",
    )
    depth_importance: Literal["influence", "loss", "task"] = option(
        "influence",
        "What decides which layers are removed. influence: the scores of --importance, which for activation "
        "say how little a block changes its input; loss: the loss on calibration text without them; task: "
        "first the accuracy on --depth-task without them, then the loss. With --depth-removal scattered, "
        "loss and task remove one layer after the other, each time the one that is missed least.",
    )
    depth_task: str | None = option(
        None,
        "Multiple-choice questions for --depth-importance task: a task of lm-eval by its name or its .yaml "
        "file, or a .jsonl file with a JSON object on each line: question, choices, and answer, the index of "
        "the right choice from 0.",
        course=True,
        metavar="TASK",
    )
    depth_size: int = option(
        32,
        "Largest number of calibration sequences on which --depth-importance loss or task measures the loss.",
        ge=1,
    )
    depth_curve: Integers | None = option(
        None,
        "Sizes of blocks of layers whose removal is measured at every position and drawn in depth.html, with "
        "--depth-importance loss or task; by default 1, 2, 8 and 16, in proportion for fewer than 32 layers.",
        metavar="N,...",
    )
    scores: str | None = option(
        None,
        "Directory of an earlier prune of the same model, whose saved scores are used instead of measuring "
        "importance again.",
        course=True,
        metavar="DIR",
    )
    shape: Shape | None = option(
        None,
        "Dimensions of the student instead of --target, such as hidden_size=432,num_hidden_layers=24.",
        metavar="NAME=NUMBER,...",
    )

    @property
    def rotates(self) -> bool:
        """Whether the hidden size is reduced by rotation."""
        return self.hidden == "rotation"

    @property
    def reads_text(self) -> bool:
        """Whether scoring, or choosing what is removed, runs the model over the calibration text."""
        measures = self.scores is None and IMPORTANCE_METHODS[self.importance].needs_text
        return measures or self.measures_depth or self.rotates

    @property
    def measures_depth(self) -> bool:
        """Whether the model is run without layers to find those that are removed."""
        return self.depth_importance != "influence"


class Repair(Section):
    """What happens to weights after units or weights were removed, before any training."""

    heading: ClassVar[str] = "Repair"

    method: Literal["off", "least-squares"] = option(
        "least-squares",
        "Adjust the kept weights after pruning and after sparsifying, to make up for removed ones. "
        "least-squares: fit every linear layer again on the calibration text.",
        flag="--repair",
    )
    size: int = option(
        256,
        "Largest number of calibration sequences that a repair uses in a run; `reconstruct` uses all.",
        flag="--repair-size",
        ge=FEWEST_REPAIR_SEQUENCES,
    )

    steps: int = option(
        0,
        "After least squares, train attention and MLP of each layer by themselves with this many gradient "
        "steps, such as 200 (arXiv 2510.14444).",
        flag="--repair-steps",
        ge=0,
        metavar="N",
    )

    fp8: bool = option(
        default=False,
        text="With --fp8, also fit the quantized weights again, so that rounding one makes up for the others "
        "and for rounded inputs (arXiv 2309.01885).",
        flag="--repair-fp8",
    )

    @property
    def enabled(self) -> bool:
        """Whether anything is repaired."""
        return self.method != "off"


class Quantize(Section):
    """Post-training quantisation of the decoder's linear layers."""

    fp8: bool = option(default=False, text="Quantize weights and activations to FP8 (E4M3).")
    fp8_kv_cache: bool = option(default=False, text="Quantize the key/value cache to FP8 too; needs --fp8.")
