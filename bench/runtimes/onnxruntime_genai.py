"""ONNX Runtime GenAI: directories made by `onnxruntime_genai.models.builder`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from bench.measure.timeline import Timeline
from bench.runtimes.base import Vocabulary
from bench.runtimes.model_config import require_file, section, vocabulary_of
from compressor.core.errors import DependencyError, VerificationError
from compressor.core.json_files import read_json_mapping

NO_TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
CONFIG_FILE = "genai_config.json"


class OnnxRuntimeGenai:
    """Loads a directory with `genai_config.json` and an ONNX graph with key/value cache."""

    def require(self, precision: str) -> None:
        """See `bench.runtimes.base.StaticRuntime.require`; the graph itself holds its precision."""
        _library()

    def check(self, path: Path, *, precision: str) -> None:
        """See `bench.runtimes.base.StaticRuntime.check`."""
        require_file(path, CONFIG_FILE, holds="ONNX Runtime GenAI model")
        self.require(precision)

    def device(self, path: Path) -> str:
        """See `bench.runtimes.base.StaticRuntime.device`: the graph is built for one."""
        return "cuda" if _runs_on_cuda(_model_config(path)) else "cpu"

    def load(self, path: Path, *, precision: str) -> OnnxRuntimeGenaiSession:
        """See `bench.runtimes.base.StaticRuntime.load`."""
        self.check(path, precision=precision)
        return OnnxRuntimeGenaiSession(_library(), path)


class OnnxRuntimeGenaiSession:
    """One loaded model; see `bench.runtimes.base.Session`."""

    def __init__(self, library: ModuleType, path: Path) -> None:
        self._library = library
        self._model = library.Model(str(path))
        config = _model_config(path)
        self._num_gpus = 1 if _runs_on_cuda(config) else 0
        self.vocabulary: Vocabulary = vocabulary_of(config, where=path / CONFIG_FILE)

    def generate(self, prompts: NDArray[np.int32], *, osl: int) -> Timeline:
        """See `bench.runtimes.base.Session.generate`; the minimum length keeps end-of-text suppressed."""
        batch_size, isl = prompts.shape
        length = isl + osl
        params = self._library.GeneratorParams(self._model)
        params.set_search_options(
            min_length=length, max_length=length, batch_size=batch_size, do_sample=False
        )
        token_times_s: list[float] = []
        start_s = time.perf_counter()
        generator = self._library.Generator(self._model, params)
        generator.append_tokens(prompts)
        while not generator.is_done():
            generator.generate_next_token()
            token_times_s.append(time.perf_counter())
        sequences = [generator.get_sequence(index) for index in range(batch_size)]
        if not all(
            np.array_equal(sequence[:isl], prompt)
            for sequence, prompt in zip(sequences, prompts, strict=True)
        ):
            raise VerificationError(
                "ONNX Runtime GenAI returned sequences that do not begin with their prompts",
                hint="export the model again, and report this model if it happens again",
            )
        return Timeline(
            start_s=start_s,
            token_times_s=tuple(token_times_s),
            num_input_tokens=(isl,) * batch_size,
            num_output_tokens=tuple(len(sequence) - isl for sequence in sequences),
            num_gpus=self._num_gpus,
        )


def _library() -> ModuleType:
    """The module, imported late: it loads native libraries.

    Since 1.29 ONNX Runtime's Linux builds send model names and host facts to Microsoft unless this
    variable is set before they are loaded; the sending would also run beside the measurement.
    """
    os.environ.setdefault(NO_TELEMETRY_VARIABLE, "1")
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise DependencyError(
            "onnxruntime-genai cannot be imported", found=error, hint="pip install onnxruntime-genai"
        ) from error
    library: ModuleType = onnxruntime_genai
    return library


def _model_config(directory: Path) -> Mapping[str, object]:
    """The `model` section of `genai_config.json`."""
    return section(read_json_mapping(directory / CONFIG_FILE, what=CONFIG_FILE), "model", what=CONFIG_FILE)


def _runs_on_cuda(model_config: Mapping[str, object]) -> bool:
    """Whether the decoder's session names the CUDA provider; the graph's builder chose it."""
    decoder = section(model_config, "decoder", what=CONFIG_FILE)
    providers = section(decoder, "session_options", what=CONFIG_FILE).get("provider_options", [])
    return isinstance(providers, list) and any("cuda" in options for options in providers)
