"""A whole run: what its recipe demands is there, and every directory against what it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.choices.formats import FORMATS
from compressor.choices.runtimes import CHECKPOINT
from compressor.core.errors import UsageError, VerificationError
from compressor.models.sparse.pattern import Pattern
from compressor.planning.cuts import name_of_cut
from compressor.planning.disk import TEACHER_QUANTIZED, quantizes_teacher
from compressor.planning.plan import read_plan
from compressor.planning.restart import redo_in_run
from compressor.recipe.recipe import Recipe, load_recipe
from compressor.runs.artifact import check_files, read_artifact
from compressor.runs.cleaned import is_cleaned
from compressor.runs.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    RECIPE_FILE,
    STUDENT,
    Manifest,
    ManifestRecord,
    StageEntry,
    read_manifest,
)
from exporters.checks.directory import Checked, Subject, check_directory
from exporters.checks.documents import check_cuts, check_manifest_entry, check_plan, check_recipe
from exporters.checks.origins import STAGES, Origin, Parts, conversions, is_finished, teacher_of
from exporters.registry import place_of
from exporters.verification.logits import VerifyOptions

_EXPORTS, BENCH = "exports", "bench"
TEACHER = "<teacher>"
_NO_MANIFEST = "put it back as it was, or make the run again in another directory: none continues without it"


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
    searched: dict[str, str | None] = {f"{STAGES}/search": TEACHER} if recipe.search.candidates else {}
    cuts = _cuts(recipe)
    places: dict[str, str | None] = {**searched, **cuts, f"{STAGES}/prune": [TEACHER, *cuts][-1]}
    student = f"{STAGES}/prune"
    if recipe.repair.enabled:
        places[f"{STAGES}/reconstruct"] = student
        student = f"{STAGES}/reconstruct"
    if distill.tokens:
        if distill.generate.tokens:
            places[f"{STAGES}/generate"] = None
        if distill.correction.mode == "first":
            places[f"{STAGES}/correct"] = TEACHER
        places[f"{STAGES}/distill"] = student
        student = f"{STAGES}/distill"
    if sparsify.pattern is not None:
        places[f"{STAGES}/sparsify"] = student
        student = f"{STAGES}/sparsify"
        if recipe.repairs_sparse():
            places[f"{STAGES}/reconstruct-sparse"] = student
            student = f"{STAGES}/reconstruct-sparse"
        if distill.tokens if sparsify.tokens is None else sparsify.tokens:
            places[f"{STAGES}/recover"] = student
            student = f"{STAGES}/recover"
    quantised = f"{STAGES}/{'reconstruct-fp8' if recipe.repairs_fp8() else 'quantize'}"
    places |= _quantised(recipe, student)
    places[STUDENT] = student
    for name in recipe.export_formats():
        places[place_of(name)] = quantised if FORMATS[name].needs_fp8 else student
    return places | _evaluations(recipe) | _benchmark(recipe)


def _quantised(recipe: Recipe, student: str) -> dict[str, str | None]:
    places: dict[str, str | None] = {f"{STAGES}/quantize": student} if recipe.quantize.fp8 else {}
    return places | ({f"{STAGES}/reconstruct-fp8": f"{STAGES}/quantize"} if recipe.repairs_fp8() else {})


def _evaluations(recipe: Recipe) -> dict[str, str | None]:
    places: dict[str, str | None] = {f"{STAGES}/evaluate": None}
    places |= {f"{STAGES}/evaluate-exports": None} if recipe.evaluate.exports else {}
    places |= {f"{STAGES}/tasks": None} if recipe.evaluate.tasks else {}
    return places | ({f"{STAGES}/chat": None} if recipe.evaluate.chat_data is not None else {})


def _cuts(recipe: Recipe) -> dict[str, str | None]:
    """The directories of all cuts but the last, each cut made from what the training before it left."""
    places: dict[str, str | None] = {}
    stages = ("prune", "reconstruct", "distill") if recipe.repair.enabled else ("prune", "distill")
    for number in range(1, recipe.interleave.cuts):
        for stage in stages:
            source = [TEACHER, *places][-1]
            places[f"{STAGES}/{name_of_cut(number)}-{stage}"] = source
    return places


def _benchmark(recipe: Recipe) -> dict[str, str | None]:
    quantized = f"{STAGES}/{TEACHER_QUANTIZED}"
    places: dict[str, str | None] = {quantized: TEACHER} if quantizes_teacher(recipe) else {}
    formats, bench = recipe.measured_formats().values(), recipe.bench
    for name in formats:
        places[f"{STAGES}/teacher-{name}"] = quantized if FORMATS[name].needs_fp8 else TEACHER
    reads = bench.is_measured and bench.row.reads == CHECKPOINT and not bench.measures_engines
    runs = reads and (bench.row.serves or bool(recipe.bench_precisions()))
    return places | ({BENCH: None} if formats or runs else {})


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """What a run says of itself: its recipe, the manifest's entry of every finished stage, its models."""

    directory: Path
    recipe: Recipe
    stages: Mapping[str, StageEntry]
    parts: Parts


def read_run(directory: Path, teacher: Path | None) -> RunRecords:
    """Read a run's records; its `teacher` is by default where the recipe says."""
    for name in (MANIFEST_FILE, RECIPE_FILE, PLAN_FILE):
        if not (directory / name).is_file():
            raise VerificationError(
                "this run was never verified: a record of it is missing",
                where=str(directory / name),
                hint=_NO_MANIFEST
                if name == MANIFEST_FILE
                else "repeat the command that made this run: it writes it",
            )
    try:
        manifest = read_manifest(directory)
    except UsageError as error:
        raise VerificationError(
            "the manifest is not ours", where=error.where, expected=error.expected, found=error.found
        ) from error
    _require_unchanged(directory, manifest)
    read_plan(directory / PLAN_FILE)
    try:
        recipe = load_recipe(directory / RECIPE_FILE, {})
    except UsageError as error:
        raise VerificationError(
            "the run's recipe cannot be read", where=str(directory / RECIPE_FILE), found=error
        ) from error
    parts = Parts(directory=directory, teacher=teacher_of(directory, recipe, teacher))
    return RunRecords(directory=directory, recipe=recipe, stages=manifest.stages, parts=parts)


def _require_unchanged(directory: Path, manifest: ManifestRecord) -> None:
    """Refuse recipe, plan or card that are not as they were written.

    Raises:
        VerificationError: naming the first of them.
    """
    changed = Manifest(directory, manifest).changed_files()
    if changed:
        raise VerificationError(
            "a file of this run is missing, or not as it was written",
            where=str(directory / changed[0]),
            hint="repeat the command that made this run: it writes it",
        )


def check_run(
    directory: Path, options: VerifyOptions, *, teacher: Path | None, pattern: Pattern | None
) -> tuple[list[Checked], list[str]]:
    """Check every directory that the recipe demands, and every other that is there.

    Returns what was found, and what was not compared, in words. Of a run that is not finished yet, a
    UsageError once what is there was checked.
    """
    for converted in conversions(directory):
        redo = f"delete {converted}, then the command that made the run converts the file again"
        check_files(converted, read_artifact(converted).files, contents=True, redo=redo)
    run = read_run(directory, teacher)
    places = demanded(run.recipe)
    present = [name for name in places if (directory / name).is_dir()]
    missing = [name for name in places if name not in present]
    _refuse_gone(run, missing)
    checked = [check_directory(subject, options) for subject in _subjects(run, places, present, pattern)]
    _check_documents(run, present)
    if missing:
        raise UsageError(
            "this run is not finished; the stages that are there were checked",
            where=str(directory),
            expected=f"{missing[0]}, which its recipe demands",
            hint="repeat the command that made this run: it finishes it",
        )
    reason = run.parts.teacher.reason
    notes = [f"the model that this run was made from is not compared: {reason}"] if reason else []
    return checked, notes


def _refuse_gone(run: RunRecords, missing: list[str]) -> None:
    """Refuse that something was finished, is demanded and is not there.

    What an earlier recipe demanded may be deleted.
    """
    for name in missing:
        if name in run.stages:
            raise VerificationError(
                "a finished part of this run is missing",
                where=str(run.directory / name),
                expected="there: the manifest records it",
                hint="repeat the command that made this run: it makes it",
            )


def _check_documents(run: RunRecords, present: list[str]) -> None:
    """Manifest, recipe and plan against what the stages recorded of themselves."""
    for name in present:
        artifact = read_artifact(run.directory / name, redo=redo_in_run)
        check_manifest_entry(run.directory / name, run.stages.get(name), artifact)
        check_recipe(run.directory / RECIPE_FILE, run.recipe, artifact)
    student = run.directory / STUDENT
    if student.is_dir():
        check_plan(run.directory, PLAN_FILE, teacher=run.parts.teacher.path, student=student)
    check_cuts(run.directory, PLAN_FILE)


def origin_in(run: RunRecords, name: str) -> Origin:
    """What a directory of a run was made from: as its recipe says, else by the recorded fingerprint."""
    places = demanded(run.recipe)
    if name not in places:
        return run.parts.origin(run.directory / name)
    source = places[name]
    if source == TEACHER:
        return run.parts.teacher
    if source is not None and is_cleaned(run.directory / source):
        return Origin(reason=f"{source}, which it was made from, was cleaned")
    return Origin(path=None if source is None else run.directory / source)


def _subjects(
    run: RunRecords, places: Mapping[str, str | None], present: list[str], pattern: Pattern | None
) -> Iterator[Subject]:
    for name in (*present, *_others(run.directory, places)):
        demands = pattern if name == STUDENT or name.startswith(_EXPORTS) else None
        yield Subject(
            directory=run.directory / name,
            origin=origin_in(run, name),
            must_be_ours=True,
            pattern=demands,
        )


def _others(directory: Path, places: Mapping[str, str | None]) -> list[str]:
    """What the recipe does not demand: made later, by an earlier recipe, or put there."""
    there = [path for part in (STAGES, _EXPORTS) for path in sorted((directory / part).glob("*"))]
    converted = conversions(directory)
    finished = [path for path in (*there, directory / BENCH) if is_finished(path) and path not in converted]
    names = [path.relative_to(directory).as_posix() for path in finished]
    return [name for name in names if name not in places]
