"""The preflight: every stage and exporter of a run on a slice of the actual model, before the run itself.

What would end a run after days - a missing permission, a shape that a runtime refuses, an export that fails -
ends its preflight after minutes, with the same error. It works in `OUT/preflight`, which is deleted however
it ends; what is left is its record in the manifest. One that passed is not repeated for the same recipe,
teacher and versions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compressor.core.console import Console
from compressor.core.errors import CompressExportError
from compressor.core.hardware import describe, resolve_dtype
from compressor.core.processes import is_main, on_main
from compressor.core.resource_errors import as_resource_error
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.source import ModelSource, open_checkpoint, resolve_source
from compressor.pipeline.bundling import write_origins
from compressor.pipeline.preflight_plan import layers_of_slice
from compressor.pipeline.report import write_model_card
from compressor.pipeline.running import Run
from compressor.pipeline.small_recipe import slice_dims, small_run
from compressor.pipeline.steps import STEPS
from compressor.pipeline.summary import summary_of
from compressor.planning.plan import Plan
from compressor.pruning.layer_slice import slice_layers
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ModelArtifact, fingerprint_of
from compressor.runs.discarding import discard
from compressor.runs.manifest import Manifest, now, open_run_directory, versions
from compressor.runs.preflight_record import PreflightRecord

PREFLIGHT = "preflight"
# Of a recipe, what no preflight depends on.
_ELSEWHERE: Mapping[str, bool | Mapping[str, bool]] = {
    "preflight": True,
    "bench": True,
    "gates": True,
    "distill": {"save_steps": True, "report_to": True},
}
Member = tuple[Recipe, Plan]


@dataclass
class _QuietConsole(Console):
    """Says where its messages are from; warnings about tiny texts and models are details."""

    def info(self, message: str) -> None:
        super().info(f"{PREFLIGHT}: {message}")

    def warn(self, message: str) -> None:
        super().detail(f"{PREFLIGHT}: {message}")


@dataclass(kw_only=True)
class _Progress:
    """How far a preflight has come.

    Attributes:
        started: On the monotonic clock, in seconds.
        num_layers: Of the largest slice so far.
        stages: Seconds of those that finished, of earlier members.
        left_out: What was not tried.
        member: What the stages of the member in progress stand below.
        run: Its run on the slice.
    """

    started: float = field(default_factory=time.monotonic)
    num_layers: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    member: str = ""
    run: Run | None = None

    def end_member(self) -> None:
        """Keep what the member in progress has finished."""
        if self.run is not None:
            finished = self.run.manifest.record.stages
            self.stages |= {f"{self.member}{where}": entry.seconds for where, entry in finished.items()}
            self.run = None

    def record(self, fingerprint: str, error: str | None) -> PreflightRecord:
        """What the manifest keeps of it, at its end."""
        self.end_member()
        return PreflightRecord(
            fingerprint=fingerprint,
            num_layers=self.num_layers,
            seconds=round(time.monotonic() - self.started, 3),
            stages=self.stages,
            left_out=self.left_out,
            error=error,
            ended=now(),
        )


def run_preflight(
    members: Sequence[Member],
    source: ModelSource,
    teacher: ModelArtifact,
    out_dir: Path,
    manifest: Manifest,
    console: Console,
) -> None:
    """Try every one of the members, the first made from `teacher`, on a slice; nothing where it is not due.

    Of a later member, whose teacher is not made yet, the slice has that one's widths. A run that goes on
    without one, after one that failed, has none: the record of the failed one is dropped.

    Raises:
        CompressExportError: that of the failing stage, whose `where` says that it was in the preflight.
    """
    work = out_dir / PREFLIGHT
    on_main(lambda: discard(work))  # of a preflight that was killed
    if not members:
        _forget_failed(manifest, console)
        return
    fingerprint = on_main(lambda: preflight_fingerprint(members, teacher))
    if not on_main(lambda: _is_due(members, manifest, fingerprint)):
        return
    console.info(f"{PREFLIGHT}: every stage and exporter on a slice of {members[0][0].model}")
    progress = _Progress()
    try:
        for number, member in enumerate(members, start=1):
            name = f"{number}/" if len(members) > 1 else ""
            _try(member, source, teacher, work / str(number), progress, name=name)
    except Exception as error:
        found = error if isinstance(error, CompressExportError) else as_resource_error(error)
        place = _place(progress)
        placed = None if found is None else _placed(found, place, work)
        manifest.update(preflight=progress.record(fingerprint, str(placed or error) or type(error).__name__))
        if placed is None:
            console.warn(f"{place}: {type(error).__name__}")
            raise
        raise placed from error
    finally:
        if is_main():  # not in step with the others, who may hang in a collective after an error
            discard(work)
    record = progress.record(fingerprint, None)
    manifest.update(preflight=record)
    left_out = f"; not tried: {'; '.join(record.left_out)}" if record.left_out else ""
    console.info(f"{PREFLIGHT}: passed in {record.seconds:.1f} s, {len(record.stages)} stages{left_out}")


def preflight_fingerprint(members: Sequence[Member], teacher: ModelArtifact) -> str:
    """What a preflight stands for: every choice but those about benchmark, gates and the log."""
    runs = [
        {
            "recipe": recipe.model_dump(mode="json", exclude=_ELSEWHERE),
            "formats": recipe.export_formats(),
            "students": [shape.to_dict() for shape in plan.possible_students()],
        }
        for recipe, plan in members
    ]
    return fingerprint_of({"runs": runs, "teacher": teacher.fingerprint, "versions": versions()})


def _forget_failed(manifest: Manifest, console: Console) -> None:
    """The run goes on although its preflight failed: what comes later must not repeat it."""
    recorded = manifest.record.preflight
    if recorded is not None and not recorded.passed:
        console.warn(f"{PREFLIGHT}: it failed, and the run goes on without one: {recorded.error}")
        manifest.update(preflight=None)


def _is_due(members: Sequence[Member], manifest: Manifest, fingerprint: str) -> bool:
    """Not where it passed already; nor, unless asked for, for a run whose stages went without one."""
    recorded = manifest.record.preflight
    if recorded is not None:
        return not recorded.passed or recorded.fingerprint != fingerprint
    return not manifest.record.stages or any(recipe.preflight == "on" for recipe, _ in members)


def _try(
    member: Member, source: ModelSource, teacher: ModelArtifact, work: Path, progress: _Progress, *, name: str
) -> None:
    """Make the slice, and run every stage but the benchmark on it, up to the model card."""
    recipe, plan = member
    console = _QuietConsole()
    model, out_dir = work / "slice", work / "run"
    progress.end_member()
    progress.member = name
    progress.num_layers = max(progress.num_layers, layers_of_slice(recipe, plan)[0])

    def cut() -> ModelArtifact:
        model.mkdir(parents=True)
        slice_layers(teacher.path, slice_dims(recipe, plan), model)
        trust = recipe.trust_remote_code
        dtype = resolve_dtype(recipe.dtype)
        return open_checkpoint(
            resolve_source(str(model)), work, dtype=dtype, trust_remote_code=trust, on_warning=console.warn
        )

    sliced = on_main(cut)
    small = small_run(recipe, plan, model=model, dims=dims_of_config(read_config(model)))
    progress.left_out = tuple(dict.fromkeys((*progress.left_out, *small.left_out)))
    with open_run_directory(out_dir, resume=False, overwrite=False) as manifest:
        manifest.update(hardware=describe())
        run = progress.run = Run(
            recipe=small.recipe,
            plan=small.plan,
            out_dir=out_dir,
            console=console,
            manifest=manifest,
            teacher=sliced,
            restart=frozenset(),
        )
        for step in STEPS.values():
            step(run)
        run.current = "report"
        on_main(lambda: _write_report(run, source))


def _write_report(run: Run, source: ModelSource) -> None:
    write_origins(run, source)
    summary = summary_of(
        run.out_dir, recipe=run.recipe, plan=run.plan, manifest=run.manifest.record, made=run.at
    )
    write_model_card(run.out_dir, summary)


def _place(progress: _Progress) -> str:
    stage = progress.run.current if progress.run else "slice"
    return f"{stage}, in the preflight on a slice of {progress.num_layers} layers of the model"


def _placed(error: CompressExportError, place: str, work: Path) -> CompressExportError:
    """The same error, which says that it was in the preflight; paths below its directory are gone."""
    where = place
    if error.where is not None and str(work) not in error.where:
        where = f"{error.where} ({place})"
    placed = type(error).__new__(type(error))
    placed.__dict__.update(error.__dict__)
    CompressExportError.__init__(
        placed, error.what, where=where, expected=error.expected, found=error.found, hint=error.hint
    )
    return placed
