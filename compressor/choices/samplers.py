"""What samples text from a teacher: a server that is installed, or transformers."""

from __future__ import annotations

import shutil
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass

from compressor.choices.row import Row, table
from compressor.core.errors import DependencyError

TRANSFORMERS = "transformers"
AUTO = "auto"
# Of transformers. Part of what decides the text: samples of a batch share one random generator.
SAMPLES_PER_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class SamplerRow(Row):
    """A function of a checkpoint and a port that returns a server's command line.

    Attributes:
        executable: The program that it is found by, on PATH; None for transformers, which needs no server.
    """

    executable: str | None = None

    def is_found(self) -> bool:
        """Whether this machine has it."""
        return self.executable is None or shutil.which(self.executable) is not None

    def require_found(self) -> None:
        """Refuse a sampler whose program is missing.

        Raises:
            DependencyError: naming it.
        """
        if not self.is_found():
            raise DependencyError(
                f"{self.executable} is not on PATH",
                where=f"--sampler {self.name} (--generate-sampler in a run)",
                hint=f"run the command where it is, or sample with {TRANSFORMERS}",
            )


SAMPLERS = table(
    SamplerRow(
        name="vllm",
        help="vllm serve, which answers many samples at once.",
        code="compressor.distillation.server_sampler:vllm_line",
        executable="vllm",
    ),
    SamplerRow(
        name="tensorrt-llm",
        help="trtllm-serve, which answers many samples at once.",
        code="compressor.distillation.server_sampler:trtllm_line",
        executable="trtllm-serve",
    ),
    SamplerRow(
        name=TRANSFORMERS,
        help="The teacher in this process; an interrupted text continues to the same bytes.",
        code="compressor.distillation.generate_stage:Sampler",
    ),
)
SAMPLER_CHOICES: Mapping[str, Row] = ChainMap(
    SAMPLERS,  # type: ignore[arg-type] # only read
    {
        AUTO: Row(
            name=AUTO,
            help="Takes the first of the following that this machine has.",
            code="no code: another one is taken",
        )
    },
)


def sampler_on_this_machine() -> str:
    """What `auto` is here."""
    return next(name for name, row in SAMPLERS.items() if row.is_found())
