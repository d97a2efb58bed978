"""What a runtime must be able to do: the protocols that every implementation follows.

The table that names the runtimes is `compressor.choices.runtimes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.design.cells import MIN_WARMUP_REQUESTS
from bench.measure.timeline import Timeline
from bench.report.results import Absent

DEFAULT_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The token ids that a model knows: below `size`, and those that no prompt may hold."""

    size: int
    special_token_ids: tuple[int, ...]


class Session(Protocol):
    """A loaded model, ready to generate."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The token ids that prompts are made of."""

    def generate(self, prompts: NDArray[np.int32], *, osl: int) -> Timeline:
        """Generate exactly `osl` tokens greedily for every prompt of `[batch_size, isl]`.

        A runtime that changed the prompts is a VerificationError.
        """


class StaticRuntime(Protocol):
    """Executes a model directory with static batches: all sequences start and end together."""

    def require(self, precision: str) -> None:
        """Find out, before any model is read, whether this machine can run the precision.

        A DependencyError when the runtime is not installed, an UnsupportedError when kernels are missing.
        """

    def check(self, path: Path, *, precision: str) -> None:
        """Find out cheaply whether `path` can be loaded at all; raises what `require` raises, too.

        A directory that is not of this runtime's kind is a UsageError.
        """

    def device(self, path: Path) -> str:
        """What executes the model in `path` here: `cpu` or `cuda`."""

    def load(self, path: Path, *, precision: str) -> Session:
        """Load the model in `path`; raises what `check` raises, and the runtime's own errors."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What is asked of a server: requests of `isl` and `osl` tokens each, `concurrency` of them in flight.

    `timeout_s` bounds one run, start and warm-up included.
    """

    isl: int
    osl: int
    concurrency: int
    num_requests: int
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def num_warmup_requests(self) -> int:
        """As many as are in flight, and no fewer than the least."""
        return max(MIN_WARMUP_REQUESTS, self.concurrency)


@dataclass(frozen=True, kw_only=True)
class ServingRun:
    """What a server did with the requests, in SI units; what it does not report is absent with a reason."""

    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    output_tokens_per_s_per_user: float
    output_tokens_per_s_per_gpu: float
    latency_s: float
    latency_p99_s: float | Absent
    ttft_s: float | Absent
    tpot_s: float | Absent


class ServingRuntime(Protocol):
    """Serves a model directory with a fixed number of requests in flight."""

    def check(self, path: Path, *, engine: Path | None = None) -> None:
        """Find out cheaply whether `path`, or the engine made from it, can be served at all.

        A directory of another kind is a UsageError, a server that is not installed a DependencyError.
        """

    def stored_precision(self, path: Path) -> str:
        """The precision of a checkpoint or an engine, from its configuration: `bf16`, `fp16`, `fp32`, `fp8`.

        A quantization or a dtype that has no name here is an UnsupportedError.
        """

    def serve(
        self, path: Path, requests: Requests, *, vocab_size: int, seed: int, engine: Path | None = None
    ) -> ServingRun:
        """Start the server, warm it up, and serve the requests once.

        A failure, or a server that does not end in time, is a ResourceError with the line that says why;
        other work than was asked for a VerificationError.
        """
