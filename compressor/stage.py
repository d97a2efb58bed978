"""How a stage runs: fingerprinted, into `<dir>.partial`, synced, renamed; finished work is skipped.

A stage is a plain function `run(config, source, out_dir, context) -> details`. It reads one artifact
and fills a new directory; this module decides whether it must run at all.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from compressor.artifact import (
    ARTIFACT_FILE,
    STAGE_FILE,
    ModelArtifact,
    fingerprint_of,
    read_artifact,
    record_files,
    sync_tree,
    write_json,
)
from compressor.console import Console
from compressor.data.sources import source_fingerprint
from compressor.errors import (
    DependencyError,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from compressor.json_files import read_json_mapping
from compressor.processes import is_main, on_main, world_size

PARTIAL_SUFFIX = ".partial"

# Other input makes another run; after a network error the same one is taken up again.
_INPUT_ERRORS = (UsageError, UnsupportedError, DependencyError)

Config = TypeVar("Config", bound=BaseModel)


@dataclass(kw_only=True)
class StageContext:
    """What every stage may use besides its configuration and its source.

    Attributes:
        console: Messages and progress.
        seed: Seed of everything random.
        device: Torch device name.
        dtype: Torch dtype name of stored 16-bit weights and of forward passes.
        teacher: The original model, for stages that compare with it.
        others: Further artifacts a stage reads, by role.
        trust_remote_code: Whether model code from a hub repository may run.
    """

    console: Console
    seed: int
    device: str
    dtype: str
    teacher: ModelArtifact | None = None
    others: dict[str, ModelArtifact] = field(default_factory=dict)
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Config]):
    """One step of the road.

    Attributes:
        name: Its name in commands, directories and lineages.
        run: Fills `out_dir` and returns the artifact's `num_parameters` and `details`.
        format_version: Raised when the stage's output changes for equal input.
        libraries: Distributions whose versions decide its numbers.
        data: The text sources its configuration names.
        parallel: Runs in every process of a run, which share its work; else in the main one alone.
    """

    name: str
    run: Callable[[Config, ModelArtifact, Path, StageContext], StageResult]
    format_version: int = 1
    libraries: tuple[str, ...] = ("torch", "transformers")
    data: Callable[[Config], tuple[str, ...]] = lambda _config: ()
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage reports of its output; both go into `artifact.json`."""

    num_parameters: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """An artifact, and what it cost in this process (0 seconds when it was there already)."""

    artifact: ModelArtifact
    skipped: bool
    seconds: float
    warnings: tuple[str, ...]


def execute(
    stage: Stage[Config],
    config: Config,
    source: ModelArtifact,
    out_dir: Path,
    context: StageContext,
    *,
    restart: bool = False,
) -> StageOutcome:
    """Run a stage unless its finished output is already in `out_dir`.

    Args:
        stage: The stage.
        config: Its configuration.
        source: Its input.
        out_dir: Where its output belongs; filled through `<out_dir>.partial`.
        context: The rest.
        restart: Discard what is there instead of refusing what differs.

    Raises:
        UsageError: when `out_dir` holds the output, or the beginning, of a different run.
    """
    inputs = on_main(lambda: stage_inputs(stage, config, source, context))
    finished = on_main(lambda: _finished(stage.name, out_dir, inputs, restart=restart))
    if finished is not None:
        return StageOutcome(artifact=finished, skipped=True, seconds=0.0, warnings=())
    is_new = not out_dir.with_name(out_dir.name + PARTIAL_SUFFIX).exists()
    partial = on_main(lambda: _open_partial(stage.name, out_dir, inputs))
    started, num_warnings = time.monotonic(), len(context.console.warnings)

    def run() -> StageResult:
        return stage.run(config, source, partial, context)

    try:
        result = run() if stage.parallel else on_main(run)
    except Exception as error:
        # Nothing was begun that better input could continue, or nothing at all.
        if is_main() and is_new and (isinstance(error, _INPUT_ERRORS) or _is_untouched(partial)):
            shutil.rmtree(partial)
        raise
    artifact = ModelArtifact(
        path=partial,
        stage=stage.name,
        fingerprint=fingerprint_of(inputs),
        lineage=(*source.lineage, stage.name),
        num_parameters=result.num_parameters,
        texts=_texts(inputs, source, context),
        inputs=inputs,
        details=result.details,
    )
    return StageOutcome(
        artifact=on_main(lambda: _publish(artifact, out_dir)),
        skipped=False,
        seconds=time.monotonic() - started,
        warnings=tuple(context.console.warnings[num_warnings:]),
    )


def _texts(inputs: dict[str, Any], source: ModelArtifact, context: StageContext) -> tuple[str, ...]:
    """Fingerprints of every text that a stage or what it reads has seen."""
    read = [source, *context.others.values(), *([context.teacher] if context.teacher else [])]
    return tuple(sorted({*inputs["data"].values(), *(text for artifact in read for text in artifact.texts)}))


def _finished(stage: str, out_dir: Path, inputs: dict[str, Any], *, restart: bool) -> ModelArtifact | None:
    """The finished output of the same inputs, if it is there."""
    if restart:
        discard(out_dir)
    if not (out_dir / ARTIFACT_FILE).is_file():
        return None
    finished = read_artifact(out_dir)
    _refuse_difference(stage, out_dir, finished.inputs, inputs)
    (out_dir / STAGE_FILE).unlink(missing_ok=True)  # left by a kill right after the renaming
    return finished


def stage_inputs(
    stage: Stage[Config], config: Config, source: ModelArtifact, context: StageContext
) -> dict[str, Any]:
    """Everything that decides a stage's output, as plain JSON values."""
    inputs = {
        "stage": stage.name,
        "format_version": stage.format_version,
        "config": config.model_dump(mode="json"),
        "source": source.fingerprint,
        "teacher": context.teacher.fingerprint if context.teacher else None,
        "others": {name: other.fingerprint for name, other in sorted(context.others.items())},
        "data": {spec: source_fingerprint(spec) for spec in sorted(set(stage.data(config)))},
        "seed": context.seed,
        "device": context.device,
        "dtype": context.dtype,
        "versions": {name: _version(name) for name in stage.libraries},
    }
    if stage.parallel:
        inputs["processes"] = world_size()
    plain: dict[str, Any] = json.loads(json.dumps(inputs))
    return plain


def discard(out_dir: Path) -> None:
    """Remove a stage's output and its unfinished beginning."""
    for directory in (out_dir, out_dir.with_name(out_dir.name + PARTIAL_SUFFIX)):
        if directory.exists():
            shutil.rmtree(directory)


def start_afresh(out_dir: Path) -> None:
    """Remove what an interrupted run left in a partial directory, but for the record of its inputs."""
    for path in out_dir.iterdir():
        if path.name == STAGE_FILE:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Which leaves of two input records differ, as `name: before -> now`."""
    found: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _refuse_difference(stage: str, where: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = differences(before, now)
    if changed:
        raise UsageError(
            f"{where} holds the {stage} stage of a different run",
            where=stage,
            found="; ".join(changed),
            hint=f"--restart-from {stage} in a run, --overwrite for a stage of its own, or another directory",
        )


def _open_partial(stage: str, out_dir: Path, inputs: dict[str, Any]) -> Path:
    """The directory to fill: continued if it was begun with the same inputs, else new."""
    if out_dir.exists() and any(out_dir.iterdir()):
        raise UsageError(
            "the output directory is in use", where=str(out_dir), hint="--overwrite, or another directory"
        )
    partial = out_dir.with_name(out_dir.name + PARTIAL_SUFFIX)
    record = partial / STAGE_FILE
    if record.is_file():
        _refuse_difference(
            stage, partial, read_json_mapping(record, what="the record of an unfinished stage"), inputs
        )
        return partial
    if partial.exists() and any(path.suffix != ".tmp" for path in partial.iterdir()):
        raise UsageError("the output directory is in use", where=str(partial))
    try:
        partial.mkdir(parents=True, exist_ok=True)
        write_json(record, inputs)
    except OSError as error:
        raise ResourceError(
            "the output directory cannot be written", where=str(partial), found=error.strerror
        ) from error
    return partial


def _is_untouched(partial: Path) -> bool:
    return [path.name for path in partial.iterdir()] == [STAGE_FILE]


def _publish(artifact: ModelArtifact, out_dir: Path) -> ModelArtifact:
    replace(artifact, files=record_files(artifact.path)).write()
    sync_tree(artifact.path)
    if out_dir.exists():
        out_dir.rmdir()
    artifact.path.rename(out_dir)
    # Only now: without its record a partial directory could not be told from someone else's.
    (out_dir / STAGE_FILE).unlink()
    sync_tree_parent(out_dir)
    return read_artifact(out_dir)


def sync_tree_parent(path: Path) -> None:
    """Flush the directory entry of `path` to disk."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
