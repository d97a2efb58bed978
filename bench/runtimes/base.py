"""The door for runtimes: a small protocol and a literal table."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.measure.timeline import Timeline
from bench.runtimes.onnxruntime_genai import ONNXRUNTIME_GENAI, OnnxRuntimeGenai
from bench.runtimes.torch_eager import TORCH_EAGER, TorchEager
from compressor.core.errors import UsageError, nearest


class Session(Protocol):
    """A loaded model, ready to generate."""

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to below this."""

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that a prompt must not hold: padding, beginning and end of text."""

    def generate(self, prompts: NDArray[np.int32], *, osl: int) -> Timeline:
        """Generate exactly `osl` tokens greedily for every prompt of `[batch_size, isl]`.

        Raises:
            VerificationError: when the runtime changed the prompts.
        """


class Runtime(Protocol):
    """Something that executes a model directory with static batches."""

    def check(self, path: Path, *, precision: str) -> None:
        """Find out cheaply whether `path` can be loaded at all.

        Raises:
            UsageError: when the directory is not of this runtime's kind.
            DependencyError: when the runtime is not installed.
            UnsupportedError: when this machine has no kernels for the precision.
        """

    def device(self, path: Path) -> str:
        """What executes the model in `path` here: `cpu` or `cuda`."""

    def load(self, path: Path, *, precision: str) -> Session:
        """Load the model in `path`; raises what `check` raises, and the runtime's own errors."""


RUNTIMES: dict[str, Runtime] = {
    ONNXRUNTIME_GENAI: OnnxRuntimeGenai(),
    TORCH_EAGER: TorchEager(),
}


def runtime_named(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        UsageError: when there is none.
    """
    try:
        return RUNTIMES[name]
    except KeyError:
        raise UsageError(
            "unknown runtime", expected=", ".join(RUNTIMES), found=name, hint=nearest(name, RUNTIMES)
        ) from None
