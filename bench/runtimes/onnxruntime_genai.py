"""ONNX Runtime GenAI: directories made by `onnxruntime_genai.models.builder`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.measure.timeline import Timeline
from bench.runtimes.special_tokens import special_token_ids
from compressor.core.errors import DependencyError, UsageError, VerificationError
from compressor.core.json_files import read_json_mapping

ONNXRUNTIME_GENAI = "onnxruntime-genai"
NO_TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
CONFIG_FILE = "genai_config.json"


class OnnxRuntimeGenai:
    """Loads a directory with `genai_config.json` and an ONNX graph with key/value cache."""

    def check(self, path: Path, *, precision: str) -> None:
        """See `bench.runtimes.base.Runtime.check`; the graph itself holds its precision."""
        if not (path / CONFIG_FILE).is_file():
            raise UsageError(
                "this directory holds no ONNX Runtime GenAI model", where=str(path), expected=CONFIG_FILE
            )
        _library()

    def device(self, path: Path) -> str:
        """See `bench.runtimes.base.Runtime.device`: the graph is built for one."""
        config = _model_config(path)
        return "cuda" if _runs_on_cuda(config) else "cpu"

    def load(self, path: Path, *, precision: str) -> OnnxRuntimeGenaiSession:
        """See `bench.runtimes.base.Runtime.load`."""
        self.check(path, precision=precision)
        return OnnxRuntimeGenaiSession(_library(), path)


class OnnxRuntimeGenaiSession:
    """One loaded model; see `bench.runtimes.base.Session`."""

    def __init__(self, library: Any, path: Path) -> None:
        self._library = library
        self._model = library.Model(str(path))
        config = _model_config(path)
        self._num_gpus = 1 if _runs_on_cuda(config) else 0
        self._vocab_size = int(config["vocab_size"])
        self._special_token_ids = special_token_ids(config)

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to below this."""
        return self._vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Padding, beginning and end of text."""
        return self._special_token_ids

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
            raise VerificationError("the runtime's sequences do not begin with their prompts")
        return Timeline(
            start_s=start_s,
            token_times_s=tuple(token_times_s),
            num_input_tokens=(isl,) * batch_size,
            num_output_tokens=tuple(len(sequence) - isl for sequence in sequences),
            num_gpus=self._num_gpus,
        )


def _library() -> Any:
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
    return onnxruntime_genai


def _model_config(directory: Path) -> dict[str, Any]:
    """The `model` section of `genai_config.json`."""
    file = directory / CONFIG_FILE
    model = read_json_mapping(file, what=CONFIG_FILE).get("model")
    if not isinstance(model, dict):
        raise VerificationError(f"{CONFIG_FILE} has no section 'model'", where=str(file))
    return model


def _runs_on_cuda(model_config: dict[str, Any]) -> bool:
    """Whether the decoder's session names the CUDA provider; the graph's builder chose it."""
    session = model_config.get("decoder", {}).get("session_options", {})
    return any("cuda" in options for options in session.get("provider_options", []))
