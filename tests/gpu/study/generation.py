"""The torch runtime over the published lengths, with random weights of the published shapes."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.design.shape_only import shape_of, write_shape
from bench.runtimes.torch_eager import TorchEager
from compressor.choices.grids import PUBLISHED_ISL_OSL
from compressor.models.dims import Dims
from tests.gpu.study.cells import Cell, Setting, peak_bytes, reset_peak

MODELS = ("llama3.1-8b", "4b-width", "4b-depth")
PRECISIONS = ("fp8", "bf16")
# The study's batch of the teacher and of its students; each model is measured at both.
BATCHES = (32, 64)
NUM_RUNS = 3
# Lengths that are measured with one loading of a model, shortest first.
_GROUPS = (PUBLISHED_ISL_OSL[:4], PUBLISHED_ISL_OSL[4:8], PUBLISHED_ISL_OSL[8:])
TOY = Dims(
    model_type="llama",
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=256,
    tie_word_embeddings=False,
)


@dataclass
class _Loaded:
    """The session that is on the device, if any: one at a time."""

    name: tuple[str, str] | None = None
    session: Any = None
    scratch: Any = field(default_factory=tempfile.TemporaryDirectory)

    def of(self, model: str, precision: str, dims: Dims) -> Any:
        """The session of a model in a precision."""
        if self.name != (model, precision):
            self.name = self.session = None
            directory = Path(self.scratch.name) / model
            write_shape(dims, directory)
            self.session = TorchEager().load(directory, precision=precision)
            self.name = (model, precision)
        return self.session


def runtime_cells(setting: Setting) -> Iterator[Cell]:
    """A cell for each group of lengths, precision, model, length and batch."""
    loaded = _Loaded()
    groups: tuple[tuple[tuple[int, int], ...], ...] = (((8, 4),),) if setting.toy else _GROUPS
    models = {"toy": TOY} if setting.toy else {name: shape_of(_spec(name)) for name in MODELS}
    for group in groups:
        for precision in ("fp32",) if setting.toy else PRECISIONS:
            for name, dims in models.items():
                for lengths in group:
                    for batch in (2,) if setting.toy else BATCHES:
                        key = f"{name} {precision} {lengths[0]}/{lengths[1]} x {batch}"
                        work = partial(_generate, loaded, name, precision, dims, lengths, batch, setting)
                        yield Cell(key=key, measure=work)


def _spec(model: str) -> str:
    return model if model == MODELS[0] else f"{MODELS[0]}:{model}"


def _generate(
    loaded: _Loaded,
    name: str,
    precision: str,
    dims: Dims,
    lengths: tuple[int, int],
    batch: int,
    setting: Setting,
) -> dict[str, Any]:
    session, (isl, osl) = loaded.of(name, precision, dims), lengths
    prompts = np.random.default_rng(0).integers(0, dims.vocab_size, (batch, isl), dtype=np.int32)
    reset_peak(setting.device)
    seconds, firsts = [], []
    for _ in range(NUM_RUNS):
        timeline = session.generate(prompts, osl=osl)
        seconds.append(timeline.token_times_s[-1] - timeline.start_s)
        firsts.append(timeline.token_times_s[0] - timeline.start_s)
    return {
        "output_tokens_per_s": batch * osl / statistics.median(seconds),
        "ttft_s": statistics.median(firsts),
        "seconds": seconds,
        "peak_bytes": peak_bytes(setting.device),
    }
