"""A run's bundle: its lineage against the records of its artifacts, its bill against both, and every sum."""

from __future__ import annotations

from pathlib import Path

from compressor.bundle.bom import BOM_FILE
from compressor.bundle.lineage import LINEAGE_FILE, TEACHER, LineageRecord, read_lineage
from compressor.bundle.sums import check_sums, deleted_files, read_sums
from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.runs.artifact import ARTIFACT_FILE, read_artifact, sha256_of_file
from compressor.runs.cleaned import files_left
from compressor.runs.manifest import read_manifest
from exporters.checks.equality import expect_equal

_REDO = "repeat the command that made this run: it writes it again"


def check_bundle(directory: Path) -> int:
    """Check the bundle of a run whose artifacts were checked; returns the number of files with a sum.

    A run that was made before bundles were written has none, and 0 is returned.

    Raises:
        VerificationError: naming the first file, step or sum that is wrong.
    """
    if LINEAGE_FILE not in read_manifest(directory).files:
        return 0
    lineage = read_lineage(directory)
    if lineage is None:
        raise VerificationError("the lineage is missing", where=str(directory / LINEAGE_FILE), hint=_REDO)
    _check_steps(directory, lineage)
    _check_bill(directory, lineage)
    _refuse_half_cleaned(directory, lineage)
    already = {
        f"{place}/{name}": record["sha256"]
        for place in lineage.steps
        for name, record in files_left(read_artifact(directory / place)).items()
    }
    return check_sums(directory, already=already)


def _refuse_half_cleaned(directory: Path, lineage: LineageRecord) -> None:
    """A cleaning writes the sums last: until then they name what it deleted."""
    left = deleted_files(directory, lineage.steps).intersection(read_sums(directory))
    if left:
        raise VerificationError(
            "a cleaning of this run was interrupted: files that it deletes are still summed",
            where=str(directory / min(left)),
            found=f"{len(left)} such files",
            hint=f"finish it: compress-export clean {directory}",
        )


def _check_steps(directory: Path, lineage: LineageRecord) -> None:
    """Every step is its artifact's, and following what each was made from ends at the teacher alone."""
    file = directory / LINEAGE_FILE
    known = {TEACHER: lineage.teacher.fingerprint}
    known |= {place: step.fingerprint for place, step in lineage.steps.items()}
    for place, step in lineage.steps.items():
        record = directory / place / ARTIFACT_FILE
        if not record.is_file():
            raise VerificationError("an artifact of the lineage is missing", where=str(record), hint=_REDO)
        artifact, where = read_artifact(directory / place), f"{file}: {place}"
        what = "the lineage is not that of the artifacts"
        expect_equal(what, sha256_of_file(record), step.record_sha256, where=f"{where}: record_sha256")
        expect_equal(what, artifact.fingerprint, step.fingerprint, where=f"{where}: fingerprint")
        expect_equal(what, artifact.stage, step.stage, where=f"{where}: stage")
        others = (artifact.inputs.get("others") or {}).values()
        wanted = {artifact.inputs.get("source"), artifact.inputs.get("teacher"), *others} - {None}
        named = {known.get(name, name.removeprefix("sha256:")) for name in step.made_from}
        expect_equal(what, sorted(map(str, wanted)), sorted(named), where=f"{where}: made_from")
    for place in lineage.steps:
        if TEACHER not in _above(place, lineage):
            raise VerificationError(
                "this artifact does not come from the teacher", where=f"{file}: {place}", hint=_REDO
            )


def _above(place: str, lineage: LineageRecord) -> set[str]:
    """Everything that an artifact was made from, directly or not."""
    found: set[str] = set()
    waiting = [place]
    while waiting:
        step = lineage.steps.get(waiting.pop())
        new = set(step.made_from) - found if step else set()
        found |= new
        waiting += new
    return found


def _check_bill(directory: Path, lineage: LineageRecord) -> None:
    """The models of the bill are the released artifacts, and their weights have the recorded sums."""
    file = directory / BOM_FILE
    if not file.is_file():
        raise VerificationError("the bill of materials is missing", where=str(file), hint=_REDO)
    bill = read_json_mapping(file, what="the bill of materials")
    models = {
        part["name"]: part
        for part in bill.get("components", [])
        if part.get("type") == "machine-learning-model" and part["bom-ref"] != "model:teacher"
    }
    released = [place for place in lineage.steps if place == "student" or place.startswith("exports/")]
    expect_equal(
        "the bill names other models than the run made", sorted(released), sorted(models), where=str(file)
    )
    for place, model in models.items():
        artifact = read_artifact(directory / place)
        for part in model["components"]:
            name = part["name"].removeprefix(f"{place}/")
            recorded = artifact.files[name]["sha256"] if name in artifact.files else None
            expect_equal(
                "the bill has another sum of a file",
                recorded,
                part["hashes"][0]["content"],
                where=f"{file}: {part['name']}",
            )
