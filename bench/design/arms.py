"""What is compared with what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compressor.models.dims import Dims


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model, in one precision, in one runtime.

    `id` is its name in results and reports, such as `student-fp32`; `model` the model it was exported from.
    Of `path`, the directory that the runtime loads, nothing is written into results.
    """

    id: str
    model: str
    precision: str
    path: Path
    runtime: str
    num_parameters: int
    dims: Dims | None = None  # where they are known: the roofline needs them
    has_random_weights: bool = False
    engine: Path | None = None  # what runs instead of `path`, which then only gives the tokenizer

    @property
    def weights(self) -> Path:
        """The directory that holds what is executed."""
        return self.engine or self.path

    def without_path(self, text: str) -> str:
        """`text`, such as a runtime's message, with the arm's directory replaced by its name."""
        for path in filter(None, (self.engine, self.path)):
            text = text.replace(str(path.resolve()), self.id).replace(str(path), self.id)
        return text


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms measured against each other, in pairs, over the whole grid."""

    baseline: Arm
    candidate: Arm

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """Baseline, then candidate: the A and B of A B B A."""
        return self.baseline, self.candidate

    def without_paths(self, text: str) -> str:
        """`text` with the directories of both arms replaced by their names."""
        for arm in self.arms:
            text = arm.without_path(text)
        return text


def distinct_arms(comparisons: tuple[Comparison, ...]) -> tuple[Arm, ...]:
    """Every arm once, in order of appearance."""
    return tuple(dict.fromkeys(arm for comparison in comparisons for arm in comparison.arms))
