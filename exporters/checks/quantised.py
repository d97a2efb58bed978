"""The quantisation record that vLLM and TensorRT-LLM read beside a unified FP8 checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.errors import VerificationError
from compressor.json_files import read_json_mapping
from compressor.models.checkpoint import CheckpointReader
from compressor.quantization.reader import K_SCALE

QUANTISATION_RECORD = "hf_quant_config.json"


def check_quantisation_record(directory: Path) -> None:
    """Refuse an FP8 checkpoint without its record, or one that says another quantisation than its tensors.

    Raises:
        VerificationError: naming the field.
    """
    file = directory / QUANTISATION_RECORD
    record = read_json_mapping(file, what="the quantisation record").get("quantization")
    found: dict[str, Any] = record if isinstance(record, dict) else {}
    with CheckpointReader(directory) as reader:
        has_fp8_cache = any(name.endswith(K_SCALE) for name in reader)
    wanted = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8" if has_fp8_cache else None}
    for field, value in wanted.items():
        if found.get(field) != value:
            raise VerificationError(
                "the quantisation record says something else than the checkpoint holds",
                where=f"{file}: quantization.{field}",
                expected=value,
                found=found.get(field),
            )
