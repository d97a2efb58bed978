"""What becomes of a finished run: weights of its stages are deleted, its bundle is signed and uploaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.core.processes import is_main
from compressor.core.sizes import shown_size
from compressor.pipeline.family import FamilyRecord
from compressor.recipe.recipe import Recipe
from compressor.runs.manifest import MANIFEST_FILE, STUDENT

if TYPE_CHECKING:
    from compressor.bundle.licence import Terms
    from compressor.models.source import ModelSource
    from compressor.pipeline.summary import RunSummary

PARTS = (STUDENT, "exports", "stages")
# Small, and what the summary, the card and the gates are read from.
_RESULTS = ("evaluate", "evaluate-exports", "tasks", "chat", "search")


def kept_parts(names: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of a run to keep.

    Raises:
        UsageError: for a part that there is not, or without the student.
    """
    unknown = [name for name in names if name not in PARTS]
    if unknown or STUDENT not in names:
        raise UsageError(
            f"{unknown[0]!r} is no part of a run" if unknown else "the student cannot be deleted",
            where="--keep",
            expected=f"{STUDENT}, and any of {', '.join(PARTS[1:])}",
            hint="name the parts to keep, such as --keep student,exports",
        )
    return names


def clean(
    directory: Path, *, keep: tuple[str, ...] = (STUDENT, "exports"), console: Console | None = None
) -> int:
    """Delete the large files of a finished run's parts that are not kept; returns the bytes that this frees.

    Records, plans, curves and results stay, so that `verify` and `gate` still work. A run whose stages were
    cleaned cannot be continued with other settings.

    Raises:
        UsageError: for what is no finished run, or while another process works on it.
        VerificationError: for a run that is not as it was written.
    """
    from compressor.bundle.sums import check_sums, deleted_files, read_sums, write_sums
    from compressor.pipeline.bundling import DOCUMENTS
    from compressor.runs.cleaned import clean as clean_stage
    from compressor.runs.discarding import discard
    from compressor.runs.locking import lock_run
    from exporters.checks.origins import conversions

    console = console or Console()
    parts = [part for part in PARTS if part not in kept_parts(keep)]
    if not parts or not is_main():
        return 0
    lineage = _finished(directory)
    with lock_run(directory):
        # What an interrupted cleaning deleted is still summed: the sums come last.
        gone = deleted_files(directory, lineage)
        check_sums(directory, already=_recorded(directory), deleted=gone)
        doomed = [
            place
            for place in lineage
            if place.partition("/")[0] in parts and place.rpartition("/")[2] not in _RESULTS
        ]
        freed = sum(clean_stage(directory / place) for place in doomed)
        if "stages" in parts:
            for converted in conversions(directory):
                freed += sum(path.stat().st_size for path in converted.rglob("*") if path.is_file())
                discard(converted)
        if freed or not gone.isdisjoint(read_sums(directory)):
            present = [name for name in DOCUMENTS if (directory / name).is_file()]
            write_sums(directory, lineage, present, on_warning=console.warn)
    console.info(f"{directory}: {shown_size(freed)} of {', '.join(parts)} deleted")
    return freed


def publish(
    directory: Path,
    *,
    hub: str | None = None,
    private: bool = False,
    sign: bool = False,
    private_key: Path | None = None,
    console: Console | None = None,
) -> dict[str, str]:
    """Sign the sums of a finished run, and upload it; returns where the signature and the upload are.

    A repository holds sums of its own layout, which are signed as well. A run whose gates fail is not passed
    on.

    Raises:
        UsageError: for what is no finished run, a name that the base model's licence does not allow, or a
            private key that cannot sign.
        AccuracyGateError, SpeedGateError: for a gate of its recipe that fails.
        DependencyError, NetworkError: when it cannot be signed or uploaded.
        VerificationError: for a bundle that is not as it was written.
    """
    from compressor.bundle.lineage import read_lineage
    from compressor.bundle.publish import open_signer, push_to_hub, require_repository, sign_sums
    from compressor.bundle.sums import SIGNATURE_FILE, check_sums
    from compressor.gates.report import gate_error
    from compressor.pipeline.summary import read_summary

    console = console or Console()
    _finished(directory)
    lineage = read_lineage(directory)
    if hub is not None:
        require_repository(hub, lineage.teacher.terms if lineage else None)
    is_signed = is_main() and (sign or private_key is not None)
    signer = open_signer(private_key) if is_signed else None
    gates = read_summary(directory).gates
    if gates is not None and (failed := gate_error(gates, where=str(directory))):
        raise failed
    check_sums(directory, already={})
    made: dict[str, str] = {}
    if not is_main():
        return made
    if signer is not None:
        made["signature"] = str(sign_sums(directory, signer))
    if hub is not None:
        made["hub"] = push_to_hub(directory, hub, private=private, signer=signer)
        if signer is None and (directory / SIGNATURE_FILE).exists():
            console.warn(
                f"{SIGNATURE_FILE} signs the sums of this directory and was not uploaded: the repository has "
                "others; --sign or --private-key signs both"
            )
    for name, where in made.items():
        console.info(f"{name}: {where}")
    return made


def require_publishable(recipe: Recipe, hub: str, *, asks_hub: bool = True) -> None:
    """Refuse, before any work, a repository that could not be uploaded to; without `asks_hub`, by its name.

    Raises:
        UsageError: for a name that is no repository's or not allowed, and for a family of models.
        NetworkError: without a token that may write.
    """
    from compressor.bundle.publish import require_repository, require_write_access
    from compressor.models.source import resolve_source
    from compressor.pipeline.family import split_targets

    if len(split_targets(recipe.target)) > 1:
        raise UsageError(
            "several models cannot be uploaded to one repository",
            where="--push-to-hub",
            hint="leave it out, and give every member's directory to `compress-export publish`",
        )
    require_repository(hub, _terms(resolve_source(recipe.model), asks_hub=asks_hub))
    if asks_hub and is_main():
        require_write_access()


def _terms(source: ModelSource, *, asks_hub: bool) -> Terms:
    """The terms of a model that is not downloaded yet; of an unknown one on the hub by its card."""
    from compressor.bundle.licence import UNKNOWN, terms_of
    from compressor.models.hub import download_card

    place = Path(source.location)
    if source.kind != "hub":
        return terms_of(None, place, gguf=place if source.kind == "gguf" else None)
    terms = terms_of(source.location, place)
    if terms.identifier != UNKNOWN or not asks_hub:
        return terms
    return terms_of(source.location, download_card(source.location))


def directories_of(result: RunSummary | FamilyRecord) -> Iterator[Path]:
    """The directory of a run, or of every member of a family."""
    if isinstance(result, FamilyRecord):
        yield from (Path(result.out_dir) / member.directory for member in result.members)
    else:
        yield Path(result.out_dir)


def _finished(directory: Path) -> tuple[str, ...]:
    """The places of a finished run's artifacts; refuses anything else."""
    from compressor.bundle.lineage import read_lineage
    from compressor.bundle.sums import SUMS_FILE

    lineage = read_lineage(directory)
    if not (directory / MANIFEST_FILE).is_file() or lineage is None or not (directory / SUMS_FILE).is_file():
        raise UsageError(
            "there is no finished run here",
            where=str(directory),
            expected=f"{MANIFEST_FILE}, lineage.json and {SUMS_FILE}",
            hint="name the directory of a run, or repeat the command that made it: it finishes it",
        )
    return tuple(lineage.steps)


def _recorded(directory: Path) -> dict[str, str]:
    """Sums of artifacts as they were recorded: what is about to be deleted is not read again."""
    from compressor.bundle.sums import recorded_sums

    return {
        f"{place}/{name}": digest
        for place in _finished(directory)
        for name, digest in recorded_sums(directory / place).items()
    }
