"""A whole run: what its recipe demands is there, and every directory against what it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifact import ARTIFACT_FILE, check_files, read_artifact, unsealed
from compressor.discarding import is_leftover
from compressor.errors import CompressExportError, UsageError, VerificationError
from compressor.json_files import read_json_mapping
from compressor.manifest import MANIFEST_FILE, SCHEMA, Manifest
from compressor.models.checkpoint import CONFIG_FILE, hash_and_check
from compressor.recipe import Recipe, load_recipe
from compressor.sparsity.pattern import Pattern
from compressor.stage import PARTIAL_SUFFIX
from exporters.base import needs_quantised
from exporters.checks.directory import Subject, check_directory
from exporters.checks.documents import check_manifest_entry, check_plan, check_recipe
from exporters.logits import VerifyOptions

RECIPE_FILE, PLAN_FILE = "recipe.yaml", "plan.json"
_STAGES, _EXPORTS, STUDENT, BENCH = "stages", "exports", "student", "bench"
_TEACHER_GRAPHS = {"onnx": "fp32", "onnx-fp16": "fp16", "onnx-int4": "int4"}
TEACHER = "<teacher>"


def is_run(directory: Path) -> bool:
    """Whether a directory is, or was, a run's."""
    return (directory / MANIFEST_FILE).is_file() or (
        (directory / RECIPE_FILE).is_file() and (directory / PLAN_FILE).is_file()
    )


def run_of(directory: Path) -> Path | None:
    """The run that a stage's or an export's directory lies in, if it does."""
    parents = list(directory.absolute().parents)[:2]
    return next((parent for parent in parents if (parent / MANIFEST_FILE).is_file()), None)


def demanded(recipe: Recipe) -> dict[str, str | None]:
    """Every directory that a finished run of this recipe holds, and the one that each was made from.

    The source is `TEACHER` where it is the model itself, None where nothing is compared.
    """
    distill, sparsify = recipe.distill, recipe.sparsify
    places: dict[str, str | None] = {f"{_STAGES}/prune": TEACHER}
    student = f"{_STAGES}/prune"
    if distill.tokens:
        if distill.generate.tokens:
            places[f"{_STAGES}/generate"] = None
        if distill.correction.mode == "first":
            places[f"{_STAGES}/correct"] = TEACHER
        places[f"{_STAGES}/distill"] = student
        student = f"{_STAGES}/distill"
    if sparsify.pattern is not None:
        places[f"{_STAGES}/sparsify"] = student
        student = f"{_STAGES}/sparsify"
        if distill.tokens if sparsify.tokens is None else sparsify.tokens:
            places[f"{_STAGES}/recover"] = student
            student = f"{_STAGES}/recover"
    if recipe.quantize.fp8:
        places[f"{_STAGES}/quantize"] = student
    places[STUDENT] = student
    for name in recipe.export_formats():
        if name != "huggingface":
            places[f"{_EXPORTS}/{name}"] = f"{_STAGES}/quantize" if needs_quantised(name) else student
    places[f"{_STAGES}/evaluate"] = None
    return places | _benchmark(recipe)


def _benchmark(recipe: Recipe) -> dict[str, str | None]:
    graphs = [
        name
        for name, precision in _TEACHER_GRAPHS.items()
        if recipe.bench.enabled and name in recipe.export_formats() and precision in recipe.bench.precisions
    ]
    places: dict[str, str | None] = {f"{_STAGES}/teacher-{name}": TEACHER for name in graphs}
    return places | ({BENCH: None} if graphs else {})


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """What a run says of itself.

    Attributes:
        directory: The run.
        recipe: What it was asked for.
        stages: The manifest's entry of every stage that was finished, by directory.
        teacher: The original model as a checkpoint on this machine, if it is.
    """

    directory: Path
    recipe: Recipe
    stages: Mapping[str, Any]
    teacher: Path | None


def read_run(directory: Path, teacher: Path | None) -> RunRecords:
    """Read a run's records.

    Args:
        directory: The run.
        teacher: Where the original model is; by default where the recipe says.

    Raises:
        VerificationError: when one is missing or cannot be read.
    """
    for name in (MANIFEST_FILE, RECIPE_FILE, PLAN_FILE):
        if not (directory / name).is_file():
            raise VerificationError(
                "this run was never verified: a record of it is missing",
                where=str(directory / name),
                hint="the command that made the run, again, completes it",
            )
    file, what = directory / MANIFEST_FILE, "the manifest"
    manifest = unsealed(read_json_mapping(file, what=what), file, what=what, hint=f"{file} was edited")
    _require_unchanged(directory, manifest)
    stages = manifest.get("stages")
    if manifest.get("schema") != SCHEMA or not isinstance(stages, dict):
        raise VerificationError(
            "the manifest is not ours",
            where=str(directory / MANIFEST_FILE),
            expected=SCHEMA,
            found=manifest.get("schema"),
        )
    read_json_mapping(directory / PLAN_FILE, what="the plan")
    try:
        recipe = load_recipe(directory / RECIPE_FILE, {})
    except UsageError as error:
        raise VerificationError(
            "the run's recipe cannot be read", where=str(directory / RECIPE_FILE), found=error
        ) from error
    return RunRecords(
        directory=directory, recipe=recipe, stages=stages, teacher=_teacher_of(directory, recipe, teacher)
    )


def _require_unchanged(directory: Path, manifest: dict[str, Any]) -> None:
    """Refuse recipe, plan or card that are not as they were written.

    Raises:
        VerificationError: naming the first of them.
    """
    changed = Manifest(directory, manifest).changed_files()
    if changed:
        raise VerificationError(
            "a file of this run is missing, or not as it was written",
            where=str(directory / changed[0]),
            hint="the command that made the run, again, writes it",
        )


def _teacher_of(directory: Path, recipe: Recipe, given: Path | None) -> Path | None:
    """The checkpoint that the run was made from: the given one, or what lies where the recipe says.

    What lies there today may be another model, which then is none.

    Raises:
        UsageError: when the given one is another.
    """
    prune = directory / _STAGES / "prune"
    wanted = read_artifact(prune).inputs["source"] if (prune / ARTIFACT_FILE).is_file() else None
    candidates = [given] if given is not None else _candidates(directory, recipe)
    for path in candidates:
        if wanted is None or hash_and_check(path) == wanted:
            return path
    if given is not None:
        raise UsageError(
            "this is not the model that the run was made from",
            where="--source",
            expected=f"fingerprint {wanted}",
            found=str(given),
        )
    return None


def _candidates(directory: Path, recipe: Recipe) -> list[Path]:
    """Where the original model's checkpoint may be on this machine; nothing is downloaded."""
    from compressor.models.load import resolve_source

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
    recorded = sorted((directory / _STAGES).glob(f"*/{ARTIFACT_FILE}"))
    return [
        file.parent
        for file in recorded
        if (file.parent / CONFIG_FILE).is_file()
        and file.parent.suffix != PARTIAL_SUFFIX
        and read_artifact(file.parent).stage == "source"
    ]


def check_run(
    directory: Path, options: VerifyOptions, *, teacher: Path | None, pattern: Pattern | None
) -> list[dict[str, Any]]:
    """Check every directory that the recipe demands, and every other that is there.

    Raises:
        UsageError: for a run that is not finished yet; what is there was checked.
        VerificationError: naming the first thing that is missing or wrong.
    """
    for converted in conversions(directory):
        redo = f"delete {converted}, then the command that made the run converts the file again"
        check_files(converted, read_artifact(converted).files, contents=True, redo=redo)
    run = read_run(directory, teacher)
    places = demanded(run.recipe)
    present = [name for name in places if (directory / name).is_dir()]
    for name in (*places, *run.stages):
        if name in run.stages and not (directory / name).is_dir():
            raise VerificationError(
                "a finished part of this run is missing",
                where=str(directory / name),
                expected="there: the manifest records it",
                hint="the command that made the run, again, makes it",
            )
    checked = [check_directory(subject, options) for subject in _subjects(run, places, present, pattern)]
    _check_documents(run, present)
    missing = [name for name in places if name not in present]
    if missing:
        raise UsageError(
            "this run is not finished; what is there was checked",
            where=str(directory),
            expected=f"{missing[0]}, which its recipe demands",
            hint="the command that made the run, again, finishes it",
        )
    return checked


def _check_documents(run: RunRecords, present: list[str]) -> None:
    """Manifest, recipe and plan against what the stages recorded of themselves."""
    for name in present:
        artifact = read_artifact(run.directory / name)
        check_manifest_entry(run.directory / name, run.stages.get(name), artifact)
        check_recipe(run.directory / RECIPE_FILE, run.recipe, artifact)
    student = run.directory / STUDENT
    if student.is_dir():
        check_plan(run.directory, PLAN_FILE, teacher=run.teacher, student=student)


def source_in(run: RunRecords, name: str) -> Path | None:
    """What a directory of a run was made from; None where that is not compared, or not here."""
    places = demanded(run.recipe)
    if name not in places and name.startswith(f"{_EXPORTS}/"):
        # Made later by hand: from the quantised artifact or the student, as its name says.
        quantised = f"{_STAGES}/quantize"
        return run.directory / (quantised if name.endswith("fp8") and quantised in places else STUDENT)
    source = places.get(name)
    if source == TEACHER:
        return run.teacher
    return None if source is None else run.directory / source


def _subjects(
    run: RunRecords, places: Mapping[str, str | None], present: list[str], pattern: Pattern | None
) -> Iterator[Subject]:
    for name in (*present, *_others(run.directory, places)):
        demands = pattern if name == STUDENT or name.startswith(_EXPORTS) else None
        yield Subject(
            directory=run.directory / name,
            source=source_in(run, name),
            must_be_ours=True,
            pattern=demands,
        )


def _others(directory: Path, places: Mapping[str, str | None]) -> list[str]:
    """Exports that the recipe does not name: made later, or put there."""
    there = [path for path in sorted((directory / _EXPORTS).glob("*")) if path.is_dir()]
    finished = [path for path in there if path.suffix != PARTIAL_SUFFIX and not is_leftover(path)]
    return [name for path in finished if (name := f"{_EXPORTS}/{path.name}") not in places]
