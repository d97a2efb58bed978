"""What an FP8 key/value cache needs of ModelOpt; no torch, and ModelOpt is not imported."""

from __future__ import annotations

from packaging.version import Version

from compressor.core.errors import DependencyError
from compressor.recipe.compression import Quantize
from compressor.runs.inputs import version_of

# Earlier versions raise the scales of keys and values to 1 in the FP8 checkpoint, whatever was calibrated.
_CACHE_SINCE = "0.38"


def require_cache_scales(quantize: Quantize) -> None:
    """Refuse an FP8 cache where the installed ModelOpt would not write its calibrated scales.

    Raises:
        DependencyError: naming the version.
    """
    found = version_of("nvidia-modelopt")
    if not quantize.fp8_kv_cache or found == "absent" or Version(found) >= Version(_CACHE_SINCE):
        return
    raise DependencyError(
        "this version of nvidia-modelopt raises the scales of an FP8 key/value cache to 1",
        where="quantize.fp8_kv_cache (--fp8-kv-cache)",
        expected=f"nvidia-modelopt {_CACHE_SINCE} or later",
        found=found,
        hint=f"leave out --fp8-kv-cache, or pip install 'nvidia-modelopt>={_CACHE_SINCE},<0.48'",
    )
