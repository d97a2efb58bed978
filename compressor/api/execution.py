"""What the stages of the library share: how they run, and one stage in one directory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.console import Console
from compressor.core.errors import ResourceError, UsageError
from compressor.core.hardware import resolve_device, resolve_dtype
from compressor.core.processes import on_main
from compressor.models.source import open_checkpoint, resolve_source
from compressor.recipe.recipe import Distill, Environment
from compressor.runs.artifact import ARTIFACT_FILE, STAGE_FILE, ModelArtifact
from compressor.runs.locking import lock_stage
from compressor.runs.stage import PARTIAL_SUFFIX, Stage, StageContext, execute

if TYPE_CHECKING:
    from pydantic import BaseModel

# Beside the output directory: converted GGUF files and the benchmark's graphs, used again.
SCRATCH = ".compress-export"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a stage runs, whichever it is. Messages go to the logger `compressor`.

    Attributes:
        environment: Seed, device, data type, tokenizer and trust: a recipe is one too.
        resume: Fail unless there is an interrupted run to resume; without it one is resumed if it is there.
        overwrite: Delete earlier output of this tool in the directory and start over.
        check: Compare the files of finished work with their recorded sha256 when it is asked for again.
        console: Collects warnings.
    """

    environment: Environment = Environment()
    resume: bool = False
    overwrite: bool = False
    check: bool = True
    console: Console = field(default_factory=Console)

    def begin(
        self,
        out_dir: Path,
        models: Iterable[str],
        *,
        texts: Iterable[str] = (),
        training: Distill | None = None,
    ) -> None:
        """Refuse an output directory, a MODEL or a text that cannot be used, before anything is read.

        Local texts are read whole; those to train with must hold responses where the loss is on them.

        Raises:
            UsageError, UnsupportedError, ResourceError, NetworkError: for what would end the work later.
        """
        from compressor.data.checks import check_responses, check_texts

        on_main(lambda: require_output(out_dir, resume=self.resume, overwrite=self.overwrite))
        for model in models:
            resolve_source(model)
        on_main(lambda: check_texts(sorted(set(texts)), self.console))
        if training is not None and training.loss_on == "responses":
            on_main(lambda: check_responses([domain.data for domain in training.mixture()]))

    def open(self, model: str, out_dir: Path, *, tokenizer: bool = True) -> ModelArtifact:
        """A MODEL as an artifact; a GGUF file is converted beside the output directory.

        With `tokenizer`, the environment's belongs to this one of several models.
        """
        source = resolve_source(model)
        own = self.environment.tokenizer if tokenizer or source.kind == "gguf" else None
        return on_main(
            lambda: open_checkpoint(
                source,
                out_dir.absolute().parent / SCRATCH,
                dtype=resolve_dtype(self.environment.dtype),
                tokenizer=own,
                trust_remote_code=self.environment.trust_remote_code,
                on_warning=self.console.warn,
            )
        )

    def run(
        self,
        stage: Stage[Any],
        config: BaseModel,
        source: ModelArtifact,
        out_dir: Path,
        *,
        teacher: ModelArtifact | None = None,
        others: Mapping[str, ModelArtifact] | None = None,
        wait: bool = False,
    ) -> ModelArtifact:
        """Run one stage into `out_dir`: resumed, skipped, refused or started over.

        With `wait`, another process that works there is waited for instead of refused.

        Raises:
            UsageError, ResourceError: see `require_output`, and for another run's output.
        """
        is_ours = require_output(out_dir, resume=self.resume, overwrite=self.overwrite)
        context = self.context(teacher=teacher, others=others)
        with lock_stage(out_dir, wait=wait):
            outcome = execute(stage, config, source, out_dir, context, restart=self.overwrite and is_ours)
            if outcome.skipped and self.check:
                on_main(lambda: context.check_contents(outcome.artifact))
            elif outcome.skipped:
                count = len(outcome.artifact.files)
                self.console.warn(f"--no-check: {count} files are not compared with their recorded sha256")
        state = "already there" if outcome.skipped else f"{outcome.seconds:.1f} s"
        self.console.info(f"{stage.name}: {out_dir}: {state}")
        return outcome.artifact

    def context(
        self,
        *,
        teacher: ModelArtifact | None = None,
        others: Mapping[str, ModelArtifact] | None = None,
    ) -> StageContext:
        """What a stage may use besides its configuration and its source."""
        return StageContext(
            console=self.console,
            seed=self.environment.seed,
            device=resolve_device(self.environment.device),
            dtype=resolve_dtype(self.environment.dtype),
            teacher=teacher,
            others=dict(others or {}),
            trust_remote_code=self.environment.trust_remote_code,
        )

    def run_on(
        self,
        model: str,
        out_dir: Path,
        stage: Stage[Any],
        config: Any,
        *,
        training: Distill | None = None,
        others: Mapping[str, ModelArtifact] | None = None,
    ) -> ModelArtifact:
        """Run a stage that reads one MODEL, and maybe others' outputs, once nothing speaks against it."""
        self.begin(out_dir, [model], texts=stage.data(config), training=training)
        return self.run(stage, config, self.open(model, out_dir), out_dir, others=others)

    def beside(self) -> Execution:
        """The same for what a stage makes on its way, which may not be there yet."""
        return replace(self, resume=False)


def require(condition: object, what: str, *, where: str, hint: str) -> None:
    """Refuse arguments of a stage that contradict each other.

    Raises:
        UsageError: unless `condition` holds.
    """
    if not condition:
        raise UsageError(what, where=where, hint=hint)


def require_output(out_dir: Path, *, resume: bool, overwrite: bool = False) -> bool:
    """Refuse a path that no stage can write to; returns whether a stage wrote, or began to write, there.

    Raises:
        UsageError: a path without a name, a link, a file, a directory that is not ours, or nothing to resume.
        ResourceError: when its parent must be written and cannot be; finished work is only read.
    """
    if out_dir.name in ("", ".."):
        raise UsageError(
            "the output directory may not be the root, or a path that ends in ..",
            where=str(out_dir),
            hint="name a directory such as ./pruned",
        )
    partial = out_dir.with_name(out_dir.name + PARTIAL_SUFFIX)
    is_finished = (out_dir / ARTIFACT_FILE).is_file()
    is_ours = is_finished or (partial / STAGE_FILE).is_file()
    if resume and not is_ours:
        raise UsageError("there is nothing to resume", where=str(out_dir), hint="leave --resume out")
    if out_dir.is_symlink() and not is_finished:
        raise UsageError(
            "the output path is a link",
            where=str(out_dir),
            hint="name the directory that it points to, or a new one",
        )
    for path in (out_dir, partial):
        if path.exists() and not path.is_dir():
            raise UsageError("the output path is a file", where=str(path), hint="choose another --output-dir")
        # What a kill in the first moment leaves is a temporary file of ours.
        if not is_ours and path.is_dir() and any(inner.suffix != ".tmp" for inner in path.iterdir()):
            raise UsageError(
                "the output directory is in use: it holds files that this tool did not write",
                where=str(path),
                hint="choose another --output-dir",
            )
    if overwrite or not is_finished:
        _require_writable_parent(out_dir)
    return is_ours


def _require_writable_parent(out_dir: Path) -> None:
    parent = out_dir.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(
            "a part of the output directory's path is a file",
            where=str(parent),
            hint="choose another --output-dir",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(
            "the output directory cannot be made",
            where=str(parent),
            found="not writable",
            hint="choose another --output-dir, or give this directory write permission",
        )
