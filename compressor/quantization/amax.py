"""The largest absolute values that calibration saw, as a file: what every FP8 writer takes its scales from.

`amax.safetensors` holds float32 scalars: `<linear>.weight_amax`, `<linear>.input_amax`, and
`<attention>.k_amax`, `<attention>.v_amax` for the KV cache, whether or not it is stored in FP8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from compressor.core.errors import UsageError, VerificationError
from compressor.models.checkpoint import whole, write_safetensors

AMAX_FILE = "amax.safetensors"
FP8_DIRECTORY = "huggingface-fp8"


def write_amax(directory: Path, amax: dict[str, torch.Tensor]) -> None:
    """Write the statistics, sorted by name; refuses a value that is zero or not finite."""
    for name, value in amax.items():
        check_positive(name, value, what="a calibration statistic is unusable")
    specs = [whole(name, amax[name].float().reshape(())) for name in sorted(amax)]
    write_safetensors(directory / AMAX_FILE, specs)


def recorded(amax: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """One recorded maximum, as a float32 scalar; a VerificationError where calibration recorded none."""
    if name not in amax:
        raise VerificationError("calibration recorded no such maximum", where=name, expected=AMAX_FILE)
    return amax[name].float().reshape(())


def read_amax(directory: Path) -> dict[str, torch.Tensor]:
    """Read the statistics that the quantize stage left in `directory`; a UsageError where it left none."""
    file = directory / AMAX_FILE
    if not file.is_file():
        raise UsageError(
            "this checkpoint was not quantised",
            where=str(directory),
            expected=AMAX_FILE,
            hint="run `compress-export quantize MODEL --fp8 -o DIR` and export DIR",
        )
    try:
        return load_file(file)
    except SafetensorError as error:
        what = "the calibration statistics are corrupt"
        raise VerificationError(what, where=str(file), found=error) from error


def check_positive(name: str, value: torch.Tensor, *, what: str) -> None:
    """Refuse, by name, a statistic or scale that is zero, negative, not finite, or not a single number."""
    if value.numel() != 1 or not bool(torch.isfinite(value).all()) or value.item() <= 0:
        found = value.item() if value.numel() == 1 else f"shape {list(value.shape)}"
        raise VerificationError(what, where=name, expected="one finite number above zero", found=found)
