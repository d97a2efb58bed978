"""What the reports of servers' own benchmarks have in common: usable numbers, a model's precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from bench.report.results import Absent
from bench.runtimes.model_config import CONFIG_FILE, section
from compressor.core.errors import UnsupportedError, VerificationError
from compressor.core.json_files import read_json_mapping

_QUANT_CONFIG_FILE = "hf_quant_config.json"
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "FP8": "fp8"}
NUM_REQUESTS_OF_A_TAIL = 100


def positive_number(part: Mapping[str, object], name: str, *, of: str, hint: str) -> float:
    """One number of a report; a VerificationError for one that no server can have reached."""
    value = part.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise VerificationError(
        f"{of} holds no usable number",
        where=name,
        expected="a positive, finite number",
        found=ascii(value)[:80] if name in part else "no such key",
        hint=hint,
    )


def no_tail(num_requests: int) -> Absent | None:
    """Why there is no 99% point; None where there are requests enough."""
    if num_requests >= NUM_REQUESTS_OF_A_TAIL:
        return None
    return Absent(absent=f"the 99% point needs {NUM_REQUESTS_OF_A_TAIL} requests, there are {num_requests}")


def stored_precision(path: Path) -> str:
    """The precision of a checkpoint or an engine, from its configuration.

    A quantization or a dtype that has no name here is an UnsupportedError.
    """
    config = read_json_mapping(path / CONFIG_FILE, what=CONFIG_FILE)
    built = section(config, "pretrained_config", what=CONFIG_FILE)
    found = section(built, "quantization", what=CONFIG_FILE).get("quant_algo")
    if (file := path / _QUANT_CONFIG_FILE).is_file():
        own = read_json_mapping(file, what=file.name)
        found = section(own, "quantization", what=file.name).get("quant_algo")
    found = found or built.get("dtype") or config.get("dtype") or config.get("torch_dtype")
    if not isinstance(found, str) or found not in _PRECISIONS:
        raise UnsupportedError(
            "this runtime does not support the precision that the model is stored in",
            where=str(path),
            expected=", ".join(_PRECISIONS),
            found=found,
            hint="name a checkpoint or an engine in one of the expected precisions",
        )
    return _PRECISIONS[found]
