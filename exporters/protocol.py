"""What an export format's code provides: the class that every exporter derives from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from compressor.choices.formats import Format
from compressor.core.errors import VerificationError
from compressor.models.sparse.record import SparsityRecord, read_sparsity
from compressor.recipe.recipe import Export
from compressor.runs.artifact import ModelArtifact
from exporters.verification.comparison import LogitComparison
from exporters.verification.logits import VerifyOptions
from exporters.verification.prompts import Prompt, describe_prompts
from exporters.verification.record import Engine, Status, Verification
from exporters.verification.tolerance import LogitFigures, Tolerance, check_tolerance


@dataclass(frozen=True)
class Exporter(ABC):
    """Writes one format, compares what it wrote with the student, and checks a directory of it.

    What is wrong with a directory is a VerificationError that names the first tensor, file or figure.
    """

    row: Format
    # Distributions whose versions decide the files or the figures.
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    # Whether the low-rank branches beside a sparse checkpoint are exported too.
    keeps_adapter: ClassVar[bool] = False

    @property
    def precision(self) -> str:
        """Precision of the weights; names a row of the tolerances."""
        return self.row.precisions[0]

    def loads_student(self, student: Path) -> bool:
        """Whether verification holds this student's whole model in memory, in float32."""
        return True

    def settings(self, export: Export) -> Export:
        """The settings that decide this format; others would only change its fingerprint."""
        return Export()

    def check(  # noqa: B027 - a format that expresses every model has nothing to refuse
        self, config: dict[str, object], export: Export, sparsity: SparsityRecord | None
    ) -> None:
        """Refuse a model that the format cannot express, before anything is loaded or written.

        `config` is its Hugging Face config; `sparsity` the one that it has, or will have. An
        UnsupportedError names the field, and what to do.
        """

    def require(self, export: Export) -> None:  # noqa: B027 - most formats need nothing but libraries
        """Refuse, as a DependencyError, to begin without a program that writes this format."""

    def check_files(self, directory: Path) -> None:  # noqa: B027 - most formats need the weights alone
        """Refuse, as an UnsupportedError, a checkpoint without a file beside its weights that is needed."""

    @abstractmethod
    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Fill `out_dir` from the source artifact's directory."""

    @abstractmethod
    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Reopen what was written and compare it with the 16-bit checkpoint in `student`.

        Measured figures beyond their tolerance are the caller's to enforce.
        """

    @abstractmethod
    def check_structure(self, directory: Path) -> Mapping[str, JsonValue]:
        """Check a directory of this format by itself; returns what was found, for the report."""

    @abstractmethod
    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        """Check every recorded tensor as this format stores it; returns their number."""

    def sparsity(self, directory: Path, *, sparsity: SparsityRecord | None = None) -> dict[str, JsonValue]:
        """Check the sparsity that a directory's record states, or the given one.

        Returns `sparsity` with the pattern and how many tensors keep it; nothing for a dense model.
        """
        sparsity = sparsity or read_sparsity(directory)
        if sparsity is None:
            return {}
        num_tensors = self.check_sparsity(directory, sparsity)
        return {"sparsity": {"pattern": str(sparsity.pattern), "num_tensors": num_tensors}}

    def enforce(self, verification: Verification, export: Export) -> None:
        """Refuse an export beyond its tolerance, or beyond a gate that the recipe sets.

        Raises a VerificationError or an AccuracyGateError.
        """
        verification.enforce()

    def make_engine(self, out_dir: Path, source: ModelArtifact, options: VerifyOptions) -> Engine | None:
        """Build an engine of an export that passed, or leave how to; None for a format without engines."""
        return None

    def verification(
        self,
        checks: Mapping[str, JsonValue],
        *,
        prompts: list[Prompt] | None = None,
        logits: Mapping[str, LogitComparison] | None = None,
        tolerance: Tolerance | None = None,
        notes: tuple[str, ...] = (),
    ) -> Verification:
        """The record of exact `checks` that passed and of a comparison; without logits, nothing was executed.

        `logits` are over `all` positions and kinds of them; a `tolerance` of None is reported only.
        """
        figures = {kind: compared.figures() for kind, compared in (logits or {}).items()}
        return Verification(
            format=self.row.name,
            precision=self.precision,
            status=_status(figures, tolerance),
            prompts=describe_prompts(prompts) if prompts else None,
            logits=figures,
            tolerance=tolerance,
            checks=dict(checks),
            notes=notes,
        )


def _status(logits: Mapping[str, LogitFigures], tolerance: Tolerance | None) -> Status:
    if not logits:
        return "not executed"
    if tolerance is None:
        return "reported"
    try:
        check_tolerance(logits["all"], tolerance, where="logits")
    except VerificationError:
        return "failed"
    return "passed"
