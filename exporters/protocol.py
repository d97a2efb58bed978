"""What an export format's code provides: the class that every exporter derives from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from compressor.choices.formats import Format
from compressor.models.sparse.record import Promise
from compressor.recipe.recipe import Export
from compressor.runs.artifact import ModelArtifact
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import Verification


@dataclass(frozen=True)
class Exporter(ABC):
    """Writes one format, compares what it wrote with the student, and checks a directory of it.

    Attributes:
        row: The format's row in the table.
        libraries: Distributions whose versions decide the files or the figures.
        keeps_adapter: Whether the low-rank branches beside a sparse checkpoint are exported too.
    """

    row: Format
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    keeps_adapter: ClassVar[bool] = False

    @property
    def precision(self) -> str:
        """Precision of the weights; names a row of the tolerances."""
        return self.row.precisions[0]

    @property
    def loads_student(self) -> bool:
        """Whether verification holds the whole student in memory, in float32."""
        return True

    def settings(self, export: Export) -> Export:
        """The settings that decide this format; others would only change its fingerprint."""
        return Export()

    def check(  # noqa: B027 - a format that expresses every model has nothing to refuse
        self, config: dict[str, Any], export: Export, promise: Promise | None
    ) -> None:
        """Refuse a model that the format cannot express, before anything is loaded or written.

        Args:
            config: The model's Hugging Face config.
            export: The recipe's settings of exports.
            promise: The sparsity that the model has, or will have.

        Raises:
            UnsupportedError: naming the field, and what to do.
        """

    @abstractmethod
    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Fill `out_dir` from the source artifact's directory."""

    @abstractmethod
    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Reopen what was written and compare it with the 16-bit checkpoint in `student`.

        Raises:
            VerificationError: for what must be exact and is not; measured figures beyond their
                tolerance are the caller's to enforce.
        """

    @abstractmethod
    def check_structure(self, directory: Path) -> Mapping[str, Any]:
        """Check a directory of this format without anything to compare it with.

        Returns:
            What was found, for the report.

        Raises:
            VerificationError: naming the first tensor, file or figure that is wrong.
        """

    @abstractmethod
    def check_sparsity(self, directory: Path, promise: Promise) -> int:
        """Check every promised tensor as this format stores it; returns their number.

        Raises:
            VerificationError: naming the first tensor with too many non-zeros.
        """

    def enforce(self, verification: Verification, export: Export) -> None:
        """Refuse an export beyond its tolerance, or beyond a gate that the recipe sets.

        Raises:
            VerificationError, AccuracyGateError: naming the figure.
        """
        verification.enforce()

    def finish(self, out_dir: Path, source: ModelArtifact, options: VerifyOptions) -> Mapping[str, Any]:
        """Make more from an export that passed, such as an engine; returns what its details gain."""
        return {}
