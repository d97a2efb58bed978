"""What the stages of the library share: how they run, and one stage in one directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.recipe.recipe import Distill, Environment

if TYPE_CHECKING:
    from pydantic import BaseModel

    from compressor.runs.artifact import ModelArtifact
    from compressor.runs.stage import Stage, StageContext

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

    def context(
        self,
        *,
        teacher: ModelArtifact | None = None,
        others: Mapping[str, ModelArtifact] | None = None,
    ) -> StageContext:
        """What a stage gets beside its configuration and its source."""
        from compressor.core.hardware import resolve_device, resolve_dtype
        from compressor.runs.stage import StageContext

        return StageContext(
            console=self.console,
            seed=self.environment.seed,
            device=resolve_device(self.environment.device),
            dtype=resolve_dtype(self.environment.dtype),
            teacher=teacher,
            others=dict(others or {}),
            trust_remote_code=self.environment.trust_remote_code,
        )

    def begin(
        self,
        out_dir: Path,
        models: Iterable[str],
        *,
        texts: Iterable[str] = (),
        training: Distill | None = None,
    ) -> None:
        """Refuse an output directory, a MODEL or a text that cannot be used, before anything is read.

        Args:
            out_dir: Where a stage is to write.
            models: Every MODEL that it reads.
            texts: Every SOURCE that it reads; local ones are read whole.
            training: What is trained with, whose texts must hold responses where the loss is on them.

        Raises:
            UsageError, UnsupportedError, ResourceError, NetworkError: for what would end the work later.
        """
        from compressor.api.output import require_output
        from compressor.core.processes import on_main
        from compressor.data.checks import check_responses, check_texts
        from compressor.models.source import resolve_source

        on_main(lambda: require_output(out_dir, resume=self.resume, overwrite=self.overwrite))
        for model in models:
            resolve_source(model)
        on_main(lambda: check_texts(sorted(set(texts)), self.console))
        if training is not None and training.loss_on == "responses":
            on_main(lambda: check_responses([domain.data for domain in training.mixture()]))

    def open(self, model: str, out_dir: Path, *, tokenizer: bool = True) -> ModelArtifact:
        """A MODEL as an artifact; a GGUF file is converted beside the output directory.

        Args:
            model: Alias, Hugging Face id, directory or .gguf file.
            out_dir: The stage's output directory.
            tokenizer: Whether the environment's tokenizer belongs to this one of several models.
        """
        from compressor.core.hardware import resolve_dtype
        from compressor.core.processes import on_main
        from compressor.models.source import open_checkpoint, resolve_source

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
    ) -> ModelArtifact:
        """Run one stage into `out_dir`: resumed, skipped, refused or started over.

        Raises:
            UsageError, ResourceError: see `require_output`, and for another run's output.
        """
        from compressor.api.output import require_output
        from compressor.core.processes import on_main
        from compressor.runs.locking import lock_stage
        from compressor.runs.stage import execute

        is_ours = require_output(out_dir, resume=self.resume, overwrite=self.overwrite)
        context = self.context(teacher=teacher, others=others)
        with lock_stage(out_dir):
            outcome = execute(stage, config, source, out_dir, context, restart=self.overwrite and is_ours)
            if outcome.skipped and self.check:
                on_main(lambda: context.check_contents(outcome.artifact))
            elif outcome.skipped:
                count = len(outcome.artifact.files)
                self.console.warn(f"--no-check: {count} files are not compared with their recorded sha256")
        state = "already there" if outcome.skipped else f"{outcome.seconds:.1f} s"
        self.console.info(f"{stage.name}: {out_dir}: {state}")
        return outcome.artifact

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
