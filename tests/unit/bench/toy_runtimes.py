"""Three runtimes that only tests know: they read a checkpoint's config and tell times by the model's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.measure.timeline import Timeline
from bench.report.results import Absent
from bench.runtimes.base import Requests, ServingRun, Vocabulary
from bench.runtimes.model_config import CONFIG_FILE, require_file, vocabulary_of
from compressor.choices.runtimes import Runtime
from compressor.core.errors import UnsupportedError
from compressor.core.json_files import read_json_mapping

STATIC = Runtime(
    name="toy-batches",
    help="counts layers instead of seconds.",
    code="tests.unit.bench.toy_runtimes:ToyBatches",
    precisions=("half", "quarter"),
)
LAYERS = Runtime(
    name="toy-layers",
    help="takes a second for every layer and token.",
    code="tests.unit.bench.toy_runtimes:CountsLayers",
    precisions=("fp16",),
    random_weights="fp16",
)
SERVER = Runtime(
    name="toy-server",
    help="serves as many tokens per second as it counts layers.",
    code="tests.unit.bench.toy_runtimes:ToyServer",
    serves=True,
)


def num_layers(path: Path) -> int:
    return int(read_json_mapping(path / CONFIG_FILE, what=CONFIG_FILE)["num_hidden_layers"])


class ToyBatches:
    def require(self, precision: str) -> None:
        if precision not in STATIC.precisions:
            raise UnsupportedError(f"the toy has no {precision}", hint="half")

    def check(self, path: Path, *, precision: str) -> None:
        require_file(path, CONFIG_FILE, holds="Hugging Face checkpoint")
        self.require(precision)

    def device(self, path: Path) -> str:
        return "cpu"

    def load(self, path: Path, *, precision: str) -> ToySession:
        self.check(path, precision=precision)
        return ToySession(path, step_s=num_layers(path) / (1 + STATIC.precisions.index(precision)))


class ToySession:
    def __init__(self, path: Path, *, step_s: float) -> None:
        config = read_json_mapping(path / CONFIG_FILE, what=CONFIG_FILE)
        self.vocabulary: Vocabulary = vocabulary_of(config, where=path)
        self._step_s = step_s

    def generate(self, prompts: NDArray[np.int32], *, osl: int) -> Timeline:
        batch_size, isl = prompts.shape
        return Timeline(
            start_s=0.0,
            token_times_s=tuple(self._step_s * (step + 1) for step in range(osl)),
            num_input_tokens=(isl,) * batch_size,
            num_output_tokens=(osl,) * batch_size,
        )


class CountsLayers(ToyBatches):
    def require(self, precision: str) -> None:
        assert precision == "fp16"

    def load(self, path: Path, *, precision: str) -> ToySession:
        self.require(precision)
        return ToySession(path, step_s=num_layers(path))


class ToyServer:
    def check(self, path: Path, *, engine: Path | None = None) -> None:
        require_file(path, CONFIG_FILE, holds="Hugging Face checkpoint")

    def stored_precision(self, path: Path) -> str:
        return "half"

    def serve(
        self, path: Path, requests: Requests, *, vocab_size: int, seed: int, engine: Path | None = None
    ) -> ServingRun:
        rate = float(num_layers(path))
        return ServingRun(
            duration_s=1.0,
            requests_per_s=rate,
            output_tokens_per_s=rate,
            total_tokens_per_s=rate,
            output_tokens_per_s_per_user=rate,
            output_tokens_per_s_per_gpu=rate,
            latency_s=1.0,
            latency_p99_s=Absent(absent="a toy has no tail"),
            ttft_s=1.0,
            tpot_s=Absent(absent="a toy does not stream"),
        )
