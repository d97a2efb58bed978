"""What the parts of a run were made from: the original model, or another part, told by fingerprints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from compressor.core.errors import CompressExportError, UsageError, VerificationError
from compressor.models.checkpoint import CONFIG_FILE, hash_and_check
from compressor.models.source import resolve_source
from compressor.planning.cuts import CUT
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ARTIFACT_FILE, read_artifact
from compressor.runs.discarding import is_leftover
from compressor.runs.manifest import STUDENT
from compressor.runs.stage import PARTIAL_SUFFIX

STAGES = "stages"
_PRUNED = f"{STAGES}/prune"
_HINT = "--source MODEL names the right one"
_UNKNOWN = "no part of this run is what it was made from"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that a directory was made from, to compare with; or the reason why there is none."""

    path: Path | None = None
    reason: str | None = None


NOTHING = Origin()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The models of a run, with fingerprints once read, to find what another directory was made from."""

    directory: Path
    teacher: Origin
    contents: dict[Path, str] = field(default_factory=dict)

    def origin(self, made: Path) -> Origin:
        """The model whose fingerprint a directory recorded as its source.

        A stage of a run records the stage that it read; a command by itself what the checkpoint holds.
        """
        if not (made / ARTIFACT_FILE).is_file():
            return NOTHING
        wanted = read_artifact(made).inputs.get("source")
        if wanted is None:
            return Origin(reason=_UNKNOWN)
        if wanted == fingerprint_of_teacher(self.directory):
            return self.teacher
        models = [path for path in self._models() if path != made]
        for path in models:
            if read_artifact(path).fingerprint == wanted:
                return Origin(path=path)
        for path in models:
            if self._content(path) == wanted:
                return Origin(path=path)
        return Origin(reason=_UNKNOWN)

    def _models(self) -> list[Path]:
        """Finished checkpoints, the student first."""
        stages = [path for path in sorted((self.directory / STAGES).glob("*")) if is_finished(path)]
        return [
            path
            for path in (self.directory / STUDENT, *stages)
            if (path / ARTIFACT_FILE).is_file() and (path / CONFIG_FILE).is_file()
        ]

    def _content(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = hash_and_check(path)
        return self.contents[path]


def is_finished(path: Path) -> bool:
    """Whether a directory is no half of one: neither begun nor half deleted, nor a hidden one."""
    begun = path.suffix == PARTIAL_SUFFIX or path.name.startswith(".")
    return path.is_dir() and not begun and not is_leftover(path)


def fingerprint_of_teacher(directory: Path) -> str | None:
    """What a run recorded of the model that it was made from; None before it pruned that.

    Of several cuts, the first was made from it.
    """
    source = _source_of(directory / _PRUNED)
    trained = {read_artifact(path).fingerprint for path in _cuts(directory, "distill")}
    first = _cuts(directory, "prune")[:1]
    if first and (source is None or source in trained):
        return _source_of(first[0])
    return source


def _cuts(directory: Path, stage: str) -> list[Path]:
    """The directories of a stage of several cuts, in their order."""
    found = (directory / STAGES).glob(f"{CUT}*-{stage}")
    numbered = [path for path in found if is_finished(path) and (path / ARTIFACT_FILE).is_file()]
    return sorted(numbered, key=lambda path: (len(path.name), path.name))


def _source_of(made: Path) -> str | None:
    if not (made / ARTIFACT_FILE).is_file():
        return None
    fingerprint: str | None = read_artifact(made).inputs.get("source")
    return fingerprint


def teacher_of(directory: Path, recipe: Recipe, given: Path | None) -> Origin:
    """The checkpoint that a run was made from: the given one, or what lies where the recipe says.

    What lies there today may be another model, which then is none; a given one is a UsageError then.
    """
    wanted = fingerprint_of_teacher(directory)
    if given is not None:
        if wanted is not None and _content(given) != wanted:
            raise UsageError(
                "this is not the model that the run was made from",
                where="--source",
                expected=f"fingerprint {wanted}",
                found=str(given),
                hint="name the run's own teacher, or leave --source out to verify without it",
            )
        return Origin(path=given)
    reason = f"{recipe.model} is not on this machine; {_HINT}"
    for path in _candidates(directory, recipe):
        try:
            if wanted is None or _content(path) == wanted:
                return Origin(path=path)
            reason = f"{path} is another model now; {_HINT}"
        except (UsageError, VerificationError) as error:
            reason = f"{path} is no model now, {error.what}; {_HINT}"
    return Origin(reason=reason)


def _content(directory: Path) -> str:
    if not (directory / CONFIG_FILE).is_file():
        raise UsageError(
            "this directory holds no checkpoint",
            where=str(directory),
            expected=CONFIG_FILE,
            hint="--source takes the directory of the checkpoint that the run was made from",
        )
    return hash_and_check(directory)


def _candidates(directory: Path, recipe: Recipe) -> list[Path]:
    """Where the original model's checkpoint may be on this machine; nothing is downloaded."""
    try:
        source = resolve_source(recipe.model)
    except CompressExportError:
        # A GGUF file that is gone was converted below the run all the same.
        return conversions(directory)
    if source.kind == "gguf":
        return conversions(directory)
    if source.kind == "directory":
        return [Path(source.location)]
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return [Path(snapshot_download(source.location, local_files_only=True))]
    except (LocalEntryNotFoundError, OSError):
        return []


def conversions(directory: Path) -> list[Path]:
    """Checkpoints that GGUF files were converted to, below the run's `stages/`."""
    return [
        path
        for path in sorted((directory / STAGES).glob("*"))
        if is_finished(path)
        and (path / ARTIFACT_FILE).is_file()
        and (path / CONFIG_FILE).is_file()
        and read_artifact(path).stage == "source"
    ]
