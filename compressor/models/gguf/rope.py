"""Rope scaling of a GGUF file, as the rope scaling of a Hugging Face config.

llama.cpp divides the angle of every pair of channels by a factor of `rope_freqs.weight` (Llama 3.1 and
later: pull request 8676), or by one factor for all (linear), or interpolates between both (YaRN). The
tensor holds only the factors, so the parameters that they were computed from are found again: a choice is
taken when it gives the file's factors, and refused otherwise. Which of several such choices it is does not
matter, because the model sees nothing but the factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from compressor.core.errors import UnsupportedError
from compressor.models.gguf.fields import Fields, head_dim, rope_theta
from compressor.models.gguf.header import ORIGINAL_CHECKPOINT

Floats = npt.NDArray[np.float64]

ROPE_FACTORS = "rope_freqs.weight"
# float32 arithmetic in another order moves a factor by a few units in the last place, and where most of
# the sum cancels by a factor's worth of them.
_RELATIVE_TOLERANCE = 2e-5
_LLAMA3 = (1.0, 4.0, 8192)
_LOW_FACTORS = (1.0, 2.0, 4.0)
_HIGH_FACTORS = (4.0, 2.0, 8.0, 16.0, 32.0)
_CONTEXTS = tuple(1 << power for power in range(5, 21))
_NUM_SHOWN = 8
_POINTS_OF_A_LINE = 2


class RopeScaling(TypedDict, total=False):
    """`rope_scaling` of a Hugging Face config; which numbers there are depends on the type."""

    rope_type: str
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


def rope_scaling_fields(fields: Fields) -> dict[str, object]:
    """`rope_scaling`, and the context that YaRN reaches; no fields where the file does not scale positions.

    A scaling that no Hugging Face config of the family expresses is unsupported.
    """
    scaling = _declared(fields)
    tensor = fields.header.tensors.get(ROPE_FACTORS)
    if tensor is not None:
        by_factors = _by_factors(fields)
        if scaling and by_factors:
            raise fields.refuse("rope.scaling.type", expected=f"none beside {ROPE_FACTORS}")
        scaling = scaling or by_factors
    if not scaling:
        return {}
    kinds = fields.layout.rope_scalings
    if tensor is None and scaling["rope_type"] not in kinds:
        raise fields.refuse("rope.scaling.type", expected=f"none or {' or '.join(kinds)}")
    if scaling["rope_type"] != "yarn":
        return {"rope_scaling": scaling}
    # Both generations take the factor itself, and 4.57 warns where the quotient of the lengths differs.
    reach = scaling["factor"] * scaling["original_max_position_embeddings"]
    if reach != int(reach):
        raise fields.refuse("rope.scaling.factor", expected="a factor that gives a whole context length")
    return {"rope_scaling": scaling, "max_position_embeddings": int(reach)}


def _declared(fields: Fields) -> RopeScaling:
    """The scaling that the fields `rope.scaling.*` declare; a missing type means linear."""
    kind = fields.get("rope.scaling.type", "linear")
    stated = fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 0.0))
    if kind == "none" or (kind == "linear" and stated in (0.0, 1.0)):
        return {}
    if kind not in ("linear", "yarn"):
        raise fields.refuse("rope.scaling.type", expected="none, linear or yarn")
    key = "rope.scaling.factor" if fields.get("rope.scaling.factor") is not None else "rope.scale_linear"
    factor = fields.decimal(key)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    attention = 0.1 * math.log(factor) + 1.0
    if not math.isclose(fields.decimal("rope.scaling.yarn_attn_factor", attention), attention, rel_tol=1e-5):
        # llama.cpp computes this factor itself whatever the file says, and transformers takes the file's.
        raise fields.refuse(
            "rope.scaling.yarn_attn_factor", expected=f"{attention:.6g}, which follows from the factor"
        )
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.number(
            "rope.scaling.original_context_length", fields.number("context_length")
        ),
        "beta_fast": fields.decimal("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": fields.decimal("rope.scaling.yarn_beta_slow", 1.0),
    }


def _by_factors(fields: Fields) -> RopeScaling:
    """The scaling that gives the factors of `rope_freqs.weight`."""
    tensor, wavelengths = fields.header.tensors[ROPE_FACTORS], _wavelengths(fields)
    num_pairs = head_dim(fields) // 2
    where = f"{fields.header.path}: {ROPE_FACTORS}"
    if not fields.layout.pairs_neighbours or tensor.kind != "F32" or tensor.shape != (num_pairs,):
        raise UnsupportedError(
            "rope factors of this form are not read",
            where=where,
            expected=f"llama, F32 [{num_pairs}]",
            found=f"{fields.architecture}, {tensor.kind} {list(tensor.shape)}",
            hint=ORIGINAL_CHECKPOINT,
        )
    factors = fields.header.raw(tensor).view("<f4").reshape(-1)
    if not np.isfinite(factors).all() or (factors < 1.0).any():
        raise UnsupportedError(
            "rope factors below 1 or not finite are not read", where=where, hint=ORIGINAL_CHECKPOINT
        )
    if (factors == factors[0]).all():
        factor = float(factors[0])
        return {} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    for low, high, context in _candidates(factors, wavelengths):
        scaling: RopeScaling = {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }
        if np.allclose(llama3_factors(scaling, wavelengths), factors, rtol=_RELATIVE_TOLERANCE, atol=0.0):
            return scaling
    raise UnsupportedError(
        "these rope factors do not match any rope scaling of a Hugging Face config",
        where=where,
        expected="factors as Llama 3.1's",
        found=", ".join(f"{value:.6g}" for value in factors[:_NUM_SHOWN]),
        hint=ORIGINAL_CHECKPOINT,
    )


def llama3_factors(scaling: RopeScaling, wavelengths: Floats) -> npt.NDArray[np.float32]:
    """What each pair's frequency is divided by under Llama 3's scaling: `[head_dim / 2]`, float32.

    Short wavelengths stay, long ones are stretched by the factor, and those between are interpolated.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: Floats = 1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)
    return factors.astype(np.float32)


def _wavelengths(fields: Fields) -> Floats:
    length = head_dim(fields)
    pairs = np.arange(0, length, 2, dtype=np.float64) / length
    wavelengths: Floats = 2.0 * math.pi * rope_theta(fields) ** pairs
    return wavelengths


def _candidates(factors: npt.NDArray[np.float32], wavelengths: Floats) -> Iterator[tuple[float, float, int]]:
    """Low and high frequency factor and original context, the published ones first.

    Only two of the three are free (all three times a constant give the same factors), so the low one is 1
    where they are solved for: from the interpolated pairs, through which 1 / factor is a line.
    """
    yield _LLAMA3
    for low in _LOW_FACTORS:
        for high in _HIGH_FACTORS:
            if high > low:
                yield from ((low, high, context) for context in _CONTEXTS)
    factor = float(factors.max())
    between = (factors > 1.0) & (factors < factor)
    if between.sum() < _POINTS_OF_A_LINE:
        return
    smooth = (1.0 / factors[between].astype(np.float64) - 1.0 / factor) / (1.0 - 1.0 / factor)
    slope, constant = np.polyfit(1.0 / wavelengths[between], smooth, 1)
    span = -1.0 / constant if constant < 0 else math.nan
    if math.isfinite(span) and slope * span > 1:
        yield 1.0, float(f"{1.0 + span:.4g}"), round(slope * span)
