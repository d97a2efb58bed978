"""A run in progress: one stage after the other into its directory, each recorded when it is finished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from compressor.core.console import Console
from compressor.core.errors import ResourceError
from compressor.core.hardware import available_memory_bytes, free_disk_bytes, resolve_device, resolve_dtype
from compressor.core.processes import is_main, on_main
from compressor.core.sizes import shown_size
from compressor.planning.disk import DiskUse, peak_disk_bytes
from compressor.planning.plan import Plan
from compressor.planning.restart import redo_in_run
from compressor.recipe.recipe import Recipe, dump_recipe
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, write_json, write_text
from compressor.runs.manifest import PLAN_FILE, RECIPE_FILE, Manifest
from compressor.runs.stage import PARTIAL_SUFFIX, Stage, StageContext, execute

CORRECTED = "corrected teacher"
# Stages that compare with a teacher: the original model, or the one that was corrected.
_TAUGHT = ("distill", "recover")
Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What becomes of what a run finds in its directory.

    Attributes:
        resume: Fail unless there is an interrupted run to resume.
        overwrite: Delete this tool's earlier output and start over.
        restart_from: Discard the output of this stage and of all later ones first.
        check: Compare every file of finished work with its recorded sha256.
    """

    resume: bool = False
    overwrite: bool = False
    restart_from: str | None = None
    check: bool = True


@dataclass(kw_only=True)
class Run:
    """A run in progress: its recipe, where it writes, and what it has made so far.

    Attributes:
        made: Artifacts by their role.
        at: The same by their directory, relative to the run's.
        reused: Those of them that were there already.
        checked: Directories whose contents this process wrote or compared with their records.
        has_worked: Whether any stage ran in this process.
        current: The directory of the stage that runs, or ran last.
    """

    recipe: Recipe
    plan: Plan
    out_dir: Path
    console: Console
    manifest: Manifest
    teacher: ModelArtifact
    restart: frozenset[str]
    made: dict[str, ModelArtifact] = field(default_factory=dict)
    at: dict[str, ModelArtifact] = field(default_factory=dict)
    reused: list[ModelArtifact] = field(default_factory=list)
    checked: set[Path] = field(default_factory=set)
    has_worked: bool = False
    current: str = ""

    def execute(
        self,
        stage: Stage[Config],
        config: Config,
        source: ModelArtifact,
        part_of: str,
        *,
        makes: str,
        where: str | None = None,
        teacher: ModelArtifact | None = None,
        others: dict[str, ModelArtifact] | None = None,
    ) -> ModelArtifact:
        """Run one stage into `where`, by default `stages/PART_OF`, and record what it `makes`.

        A training is taught by the run's teacher; another stage by the one that is given.
        """
        self.current = where = where or f"stages/{part_of}"
        self.console.info(f"{stage.name}: {where}")
        context = StageContext(
            console=self.console,
            seed=self.recipe.seed,
            device=resolve_device(self.recipe.device),
            dtype=resolve_dtype(self.recipe.dtype),
            teacher=self.made.get(CORRECTED, self.teacher) if stage.name in _TAUGHT else teacher,
            others=others or {},
            trust_remote_code=self.recipe.trust_remote_code,
            redo=redo_in_run,
            checked=self.checked,
            before=lambda: self._begin(part_of, where),
        )
        outcome = execute(
            stage, config, source, self.out_dir / where, context, restart=part_of in self.restart
        )
        self.manifest.add_stage(outcome, where=where)
        if outcome.skipped:
            self.reused.append(outcome.artifact)
        state = "already there" if outcome.skipped else f"{outcome.seconds:.1f} s"
        self.console.info(f"{stage.name}: {where}: {state}")
        self.made[makes] = self.at[where] = outcome.artifact
        return outcome.artifact

    def record_choices(self) -> None:
        """Write what to run again, and what was planned."""
        if not is_main():
            return
        write_text(self.out_dir / RECIPE_FILE, dump_recipe(self.recipe))
        write_json(self.out_dir / PLAN_FILE, self.plan.to_json())
        self.manifest.add_files((RECIPE_FILE, PLAN_FILE))

    def record_first(self) -> None:
        """The same before the first stage works and after the first cut, for a run that is interrupted.

        Over another recipe's record only where a stage was told to start again: until every stage accepted
        this one, the other is the directory's.
        """
        file = self.out_dir / RECIPE_FILE
        if self.restart or not file.is_file() or file.read_bytes() == dump_recipe(self.recipe).encode():
            self.record_choices()

    def _begin(self, part_of: str, where: str) -> None:
        """Before a stage does its work: say what is made again, and what will not fit."""
        self.has_worked = True
        if not (self.out_dir / RECIPE_FILE).is_file():
            self.record_first()
        if where in self.manifest.record.stages and part_of not in self.restart:
            self.console.warn(f"{where} was finished and is gone; it is made again")
        on_main(lambda: require_disk([use for use in self.plan.disk if use.where == where], self.out_dir))
        planned = self.plan.memory_bytes
        needed = planned.get(Path(where).name, planned.get(part_of))
        available = available_memory_bytes()
        if needed is not None and resolve_device(self.recipe.device) == "cpu" and needed > available:
            self.console.warn(
                f"{part_of} is estimated to need {shown_size(needed)} of memory, and "
                f"{shown_size(available)} are available"
            )


def require_disk(uses: Iterable[DiskUse], out_dir: Path, *, restart: frozenset[str] = frozenset()) -> None:
    """Refuse work that writes more than there is room for.

    What is there already needs none, unless its stage is in `restart`: then it is discarded first.

    Raises:
        ResourceError: naming what is needed in addition, and what is free.
    """
    missing = [_missing(use, out_dir, is_discarded=use.stage in restart) for use in uses]
    needed, free = peak_disk_bytes(missing), free_disk_bytes(out_dir)
    if free < needed:
        stages = ", ".join(
            dict.fromkeys(use.stage for use in missing if use.num_bytes or use.temporary_bytes)
        )
        raise ResourceError(
            f"not enough disk for {stages}",
            where=str(out_dir),
            expected=f"{needed:,} bytes free",
            found=f"{free:,} bytes free",
            hint="free disk space and give the same command again, or choose another --output-dir",
        )


def _missing(use: DiskUse, out_dir: Path, *, is_discarded: bool) -> DiskUse:
    """What is still to be written of a directory."""
    found = [path for path in out_dir.glob(use.where) if (path / ARTIFACT_FILE).is_file()]
    if found and not is_discarded:
        return use.model_copy(update={"num_bytes": 0, "temporary_bytes": 0})
    there = sum(map(_size, [*found, *out_dir.glob(use.where + PARTIAL_SUFFIX)]))
    temporary = max(0, use.temporary_bytes - there)
    rest = max(0, use.num_bytes - max(0, there - use.temporary_bytes))
    return use.model_copy(update={"num_bytes": rest, "temporary_bytes": temporary})


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
