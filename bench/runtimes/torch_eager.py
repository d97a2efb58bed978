"""Plain torch: Hugging Face checkpoints, or only their shape, with a static cache and CUDA graphs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.design.shape_only import is_shape_only, random_model
from bench.measure.timeline import Timeline
from bench.runtimes.base import Vocabulary
from bench.runtimes.model_config import CONFIG_FILE, require_file, vocabulary_of
from compressor.core.hardware import resolve_device
from compressor.core.json_files import read_json_mapping


class TorchEager:
    """Loads a directory with `config.json`; on a GPU where torch sees one, else on the CPU."""

    def require(self, precision: str) -> None:
        """See `bench.runtimes.base.StaticRuntime.require`."""
        from bench.runtimes.torch_linear import require_support

        require_support(precision, resolve_device("auto"))

    def check(self, path: Path, *, precision: str) -> None:
        """See `bench.runtimes.base.StaticRuntime.check`."""
        require_file(path, CONFIG_FILE, holds="Hugging Face checkpoint")
        self.require(precision)

    def device(self, path: Path) -> str:
        """See `bench.runtimes.base.StaticRuntime.device`."""
        return resolve_device("auto")

    def load(self, path: Path, *, precision: str) -> TorchSession:
        """See `bench.runtimes.base.StaticRuntime.load`."""
        from bench.design.comparisons import split_precision
        from bench.runtimes.torch_linear import DTYPES, convert_linears_
        from compressor.models.load import load_model

        self.check(path, precision=precision)
        device = resolve_device("auto")
        dtype = str(DTYPES[split_precision(precision)[0]]).removeprefix("torch.")
        if is_shape_only(path):
            model = random_model(path, dtype=dtype, device=device)
        else:
            model = load_model(path, dtype=dtype, device=device)
        convert_linears_(model, precision)
        return TorchSession(model, path)


class TorchSession:
    """One loaded model; see `bench.runtimes.base.Session`."""

    def __init__(self, model: Any, path: Path) -> None:
        self._model, self._is_cuda = model, model.device.type == "cuda"
        self.vocabulary: Vocabulary = vocabulary_of(
            read_json_mapping(path / CONFIG_FILE, what=CONFIG_FILE), where=path / CONFIG_FILE
        )
        self._decoder: Any = None
        self._decoder_shape: tuple[int, int] | None = None

    def generate(self, prompts: NDArray[np.int32], *, osl: int) -> Timeline:
        """See `bench.runtimes.base.Session.generate`.

        The first generation of a shape also allocates the cache and captures the graph, before its clock
        starts; later ones clear the cache within the measured time.
        """
        import torch

        batch_size, isl = prompts.shape
        decoder = self._decoder_for(batch_size, isl + osl)
        token_ids = torch.from_numpy(prompts.astype(np.int64)).to(self._model.device)
        self._synchronise()
        token_times_s: list[float] = []
        num_tokens = 0
        start_s = time.perf_counter()
        for step in range(osl):
            tokens = decoder.step() if step else decoder.prefill(token_ids)
            self._synchronise()
            token_times_s.append(time.perf_counter())
            num_tokens += tokens.shape[1]
        return Timeline(
            start_s=start_s,
            token_times_s=tuple(token_times_s),
            num_input_tokens=(token_ids.shape[1],) * batch_size,
            num_output_tokens=(num_tokens,) * batch_size,
            num_gpus=1 if self._is_cuda else 0,
        )

    def _decoder_for(self, batch_size: int, max_length: int) -> Any:
        """The decoder of this shape; only one is kept, as its cache may fill the device."""
        from bench.runtimes.static_decoder import StaticDecoder

        if self._decoder_shape != (batch_size, max_length):
            self._decoder = None
            self._decoder = StaticDecoder(self._model, batch_size=batch_size, max_length=max_length)
            self._decoder_shape = (batch_size, max_length)
        return self._decoder

    def _synchronise(self) -> None:
        if self._is_cuda:
            import torch

            torch.cuda.synchronize()
