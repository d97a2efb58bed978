"""The tensors a source may hold: those that a rule maps, a short list of harmless ones, and no others.

A tensor that no rule maps belongs to a computation that this project would leave out: a bias, an expert,
a further layer. It is refused by name, whatever command opens the model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from compressor.core.errors import UnsupportedError

# What old checkpoints carry and no current model class reads -> why leaving it out changes nothing.
HARMLESS: Mapping[str, str] = {
    r"(^|\.)rotary_emb\.inv_freq$": "rope frequencies: the class computes them from the config",
    r"(^|\.)rotary_emb\.(cos|sin)_cached$": "rope tables: computed from the same frequencies",
    r"(^|\.)self_attn\.masked_bias$": "the causal mask's constant",
}
# Under these names safetensors stores floating point of 16 bits or more.
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_NAMED = 3  # tensors that a message names
_HARMLESS = re.compile("|".join(HARMLESS))


def is_harmless(name: str) -> bool:
    """Whether a tensor is on the list of those that may be left out."""
    return _HARMLESS.search(name) is not None


def refuse_unmapped(names: Iterable[str], mapped: Collection[str], *, model_type: str, where: str) -> None:
    """Refuse a source that holds a tensor no rule maps.

    Args:
        names: The source's tensors, by their names in a Hugging Face checkpoint or in the source's own.
        mapped: Those that rules exist for, in the same naming.
        model_type: The family, for the message.
        where: The source, for the message.

    Raises:
        UnsupportedError: naming the first few such tensors.
    """
    extra = [name for name in names if name not in mapped and not is_harmless(name)]
    if extra:
        rest = len(extra) - _NAMED
        more = f" and {rest} more" if rest > 0 else ""
        raise UnsupportedError(
            f"the source holds tensors that a {model_type} model of this config does not have",
            where=where,
            expected=f"the tensors of {model_type}, and no others",
            found=", ".join(sorted(extra)[:_NAMED]) + more,
            hint="leaving them out would make another model; check num_hidden_layers and model_type",
        )


def refuse_quantised_dtypes(dtypes: Mapping[str, str], *, where: str) -> None:
    """Refuse FP8, integers and booleans among the weights: without their scales they mean nothing.

    Args:
        dtypes: safetensors' names of the dtypes, by tensor.
        where: The source, for the message.

    Raises:
        UnsupportedError: naming the first such tensor and its dtype.
    """
    for name, dtype in dtypes.items():
        if dtype not in FLOAT_DTYPES and not is_harmless(name):
            raise UnsupportedError(
                "a weight is stored as FP8 or integers in a checkpoint that does not say it is quantised",
                where=f"{where}: {name}",
                expected=", ".join(FLOAT_DTYPES),
                found=dtype,
                hint="start from the 16-bit model it was quantised from",
            )
