"""A stage that writes a file in two steps and can fail or be killed, and what it is called with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel

from compressor.core.errors import VerificationError
from compressor.data.sources import source_fingerprint
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import PARTIAL_SUFFIX, Stage, StageContext, StageOutcome, StageResult, execute

SCRATCH = "checkpoints"


class Config(BaseModel):
    width: int = 1
    text: str | None = None


class Killed(BaseException):
    """Stands in for a kill: nothing in the code under test may catch it."""


@dataclass
class Bed:
    """One stage that writes a file in two steps, and what it is called with."""

    out_dir: Path
    source: ModelArtifact
    context: StageContext
    runs: list[str] = field(default_factory=list)
    killed: bool = False
    refuses: bool = False
    fails: Exception | None = None

    def stage(self) -> Stage[Config]:
        return Stage(
            name="widen",
            run=self._run,
            data=lambda config: (config.text,) if config.text else (),
            fingerprint=source_fingerprint,
        )

    def _run(
        self, config: Config, source: ModelArtifact, out_dir: Path, context: StageContext
    ) -> StageResult:
        if self.refuses:
            raise VerificationError("weights are not finite")
        begun = out_dir / "begun"
        self.runs.append("continued" if begun.exists() else "new")
        begun.write_text("1")
        context.console.warn("narrow")
        if self.killed:
            raise Killed
        if self.fails is not None:
            raise self.fails
        (out_dir / "weights").write_text(str(config.width))
        scratch = out_dir / SCRATCH
        scratch.mkdir(exist_ok=True)
        (scratch / "step").write_text("1")
        return StageResult(num_parameters=config.width, details={"width": config.width}, scratch=(SCRATCH,))

    def execute(self, config: Config | None = None, *, restart: bool = False) -> StageOutcome:
        return execute(
            self.stage(), config or Config(), self.source, self.out_dir, self.context, restart=restart
        )

    @property
    def partial(self) -> Path:
        return self.out_dir.with_name(self.out_dir.name + PARTIAL_SUFFIX)


def begin(bed: Bed, finished: bool) -> None:
    bed.killed = not finished
    if finished:
        bed.execute()
        return
    with pytest.raises(Killed):
        bed.execute()
    bed.killed = False


def kill(*_arguments: object) -> None:
    raise Killed
