"""One directory: its record, every recorded file, its structure, and its content against its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from compressor.choices.formats import FORMATS, STUDENT_FORMAT
from compressor.core.errors import UsageError, VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.digests import DIGESTS_FILE
from compressor.models.dims import dims_of_config, num_parameters
from compressor.models.sparse.pattern import Pattern
from compressor.models.sparse.record import MASKS_FILE, SPARSITY_FILE
from compressor.planning.restart import redo_in_run
from compressor.pruning.plan import PLAN_FILE
from compressor.quantization.amax import AMAX_FILE
from compressor.runs.artifact import ARTIFACT_FILE, STAGE_FILE, ModelArtifact, check_files, read_artifact
from compressor.runs.cleaned import CLEANED_FILE, files_left, is_cleaned, read_cleaned
from compressor.runs.redo import redo_by_command
from compressor.training.probes import PROBES_FILE
from exporters.checks.checkpoint import expect_count
from exporters.checks.config import check_own_config, check_tokenizer_files
from exporters.checks.equality import expect_equal
from exporters.checks.origins import NOTHING, Origin
from exporters.checks.record import check_figures
from exporters.checks.stages import MODEL_STAGES, check_stage
from exporters.checks.structure import check_structure
from exporters.registry import exporter_of, format_at
from exporters.tensorrt_llm.engine import SCRIPT_FILE
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import VERIFICATION_FILE, Verification, read_verification

EXPORT_STAGE = "export-"
NO_RECORD = "no record: contents not verified"
# Only this tool writes files of these names: without a record beside them, the record is what is missing.
_OURS = (
    *(PLAN_FILE, PROBES_FILE, DIGESTS_FILE, MASKS_FILE, SPARSITY_FILE, AMAX_FILE, STAGE_FILE),
    *(ARTIFACT_FILE, VERIFICATION_FILE, SCRIPT_FILE),
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is to be checked, and what it was made from, as far as that is known.

    `must_be_ours` makes a missing record a fault whatever else is there, as inside a run; `pattern` is
    sparsity demanded of every linear layer.
    """

    directory: Path
    origin: Origin = NOTHING
    must_be_ours: bool = False
    pattern: Pattern | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A directory that was checked, and the figures and facts found.

    `status` is, of an export that was compared with its source, the comparison's; of anything else of this
    tool `ok`; of other checkpoints, that they have no record.
    """

    path: Path
    kind: Literal["checkpoint", "stage", "export"]
    status: str
    found: Mapping[str, JsonValue]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {"path": str(self.path), **self.found, "kind": self.kind, "status": self.status}


def check_directory(subject: Subject, options: VerifyOptions) -> Checked:
    """Check one directory; a UsageError when there is nothing to check."""
    directory = subject.directory
    artifact = _record_of(subject)
    if artifact is None:
        row = format_at(directory)
        if row is None:
            raise UsageError(
                "there is nothing to verify here",
                where=str(directory),
                expected="a run, a stage's or an export's directory, or a checkpoint: one of "
                + ", ".join(sorted({row.marker for row in FORMATS.values()})),
                hint="name the directory that holds such a file",
            )
        found = check_structure(directory, row.load(), subject.pattern)
        return Checked(path=directory, kind="checkpoint", status=NO_RECORD, found=found)
    if is_cleaned(directory):
        return _check_cleaned(directory, artifact)
    redo = (redo_in_run if subject.must_be_ours else redo_by_command)(artifact.stage, directory)
    check_files(directory, artifact.files, contents=True, redo=redo, stage=artifact.stage)
    check = _check_export if artifact.stage.startswith(EXPORT_STAGE) else _check_stage
    try:
        return check(subject, artifact, options)
    except UsageError as error:  # what a stage of ours recorded cannot be unusable
        raise VerificationError(
            error.what, where=error.where, expected=error.expected, found=error.found
        ) from error


def _check_cleaned(directory: Path, artifact: ModelArtifact) -> Checked:
    """What is left of a stage whose large files were deleted on purpose."""
    left = files_left(artifact)
    check_files(directory, left, contents=True, but=(CLEANED_FILE,), may_have_more=True)
    what = "the mark of a cleaned stage is of another stage"
    expect_equal(what, artifact.fingerprint, read_cleaned(directory).fingerprint, where=str(directory))
    figures: dict[str, JsonValue] = {"stage": artifact.stage, "num_files": len(left)}
    return Checked(path=directory, kind="stage", status="cleaned: contents not verified", found=figures)


def _record_of(subject: Subject) -> ModelArtifact | None:
    """The directory's record, which something of ours must have; None for what was made elsewhere."""
    directory = subject.directory
    ours = next((name for name in _OURS if (directory / name).is_file()), None)
    missing = None
    if not (directory / ARTIFACT_FILE).is_file():
        missing = ARTIFACT_FILE
    elif read_artifact(directory).stage.startswith(EXPORT_STAGE):
        missing = None if (directory / VERIFICATION_FILE).is_file() else VERIFICATION_FILE
    if missing is None:
        return read_artifact(directory)
    if ours is None and not subject.must_be_ours:
        return None
    raise VerificationError(
        "this directory was never verified: its record is missing",
        where=str(directory / missing),
        expected=f"{missing}, which belongs beside {ours}" if ours else missing,
        hint="make it again with the command that made it",
    )


def _begun(artifact: ModelArtifact) -> dict[str, JsonValue]:
    return {"stage": artifact.stage, "num_files": len(artifact.files)}


def _check_stage(subject: Subject, artifact: ModelArtifact, options: VerifyOptions) -> Checked:
    directory, found = subject.directory, _begun(artifact)
    if artifact.stage in MODEL_STAGES:
        found |= check_structure(directory, exporter_of(STUDENT_FORMAT), subject.pattern)
        check_own_config(directory, lineage=artifact.lineage)
    found |= check_stage(directory, artifact, subject.origin.path, options)
    if artifact.stage in MODEL_STAGES:
        found |= _contents(subject)
    check_figures(directory, artifact)
    return Checked(path=directory, kind="stage", status="ok", found=found)


def _contents(subject: Subject) -> dict[str, str]:
    """Whether a model was compared with what it was made from, and why not."""
    if subject.origin.path is not None:
        return {"contents": "compared with its source"}
    why = subject.origin.reason or "--source MODEL does"
    return {"contents": f"not compared with the model it was made from: {why}"}


def _check_export(subject: Subject, artifact: ModelArtifact, options: VerifyOptions) -> Checked:
    directory, found = subject.directory, _begun(artifact)
    record = read_verification(directory)
    name = record.format
    if name not in FORMATS:
        raise VerificationError(
            "the record names an unknown format",
            where=str(directory / VERIFICATION_FILE),
            expected=", ".join(FORMATS),
            found=name,
        )
    exporter = exporter_of(name)
    found |= {"format": name, **check_structure(directory, exporter, subject.pattern), **_contents(subject)}
    check_own_config(directory, lineage=artifact.lineage)
    status: str = "ok"
    verification: Verification | None = None
    source = subject.origin.path
    if source is not None:
        expect_count(directory, num_parameters(dims_of_config(read_config(source))), artifact)
        verification = exporter.verify(directory, source, options)
        verification.enforce()
        check_tokenizer_files(directory, source)
        status = verification.status
        found["logits"] = {kind: figures.model_dump() for kind, figures in verification.logits.items()}
    check_figures(directory, artifact, verification=verification)
    return Checked(path=directory, kind="export", status=status, found=found)
