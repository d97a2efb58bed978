"""What TensorRT-Edge-LLM 0.11 computes as transformers does, and the refusal of the rest from a config.

By trial with tiny models of every family: its converter takes all of them and says nothing. It builds
nemotron's norms and MLP as llama's, reads no activation but silu, and leaves mistral's window out; its
runtime knows the ropes below, and others that were not confirmed. So what is not known to be right is
refused before any work.
"""

from __future__ import annotations

import torch

from compressor.core.errors import UnsupportedError
from compressor.models.config.class_defaults import applied_window, value_of
from compressor.models.config.portable import portable_config
from compressor.models.dims import dims_of_config
from exporters.expressible import Expressible

HEAD_SIZES = (64, 72, 80, 128, 256)
ROPE_TYPES = ("default", "llama3")
SMALLEST_SCALE, LARGEST_SCALE = (
    torch.finfo(torch.float16).smallest_normal,
    torch.finfo(torch.float16).max,
)
_FORMAT = Expressible(what="TensorRT-Edge-LLM", option="tensorrt-edge-llm")


def check_expressible(config: dict[str, object]) -> None:
    """Refuse (UnsupportedError) a model that this runtime would compute otherwise, or not at all."""
    dims = dims_of_config(config)
    family, rope = dims.family, portable_config(config)
    has_root_mean_square = not family.norm_has_bias and not family.norm_offset
    _FORMAT.expect(
        "model_type", family.gated_mlp and has_root_mean_square, "a model built as llama", dims.model_type
    )
    activation = value_of(config, "hidden_act")
    _FORMAT.expect("hidden_act", activation == "silu", "silu", activation)
    _FORMAT.expect("head_dim", dims.head_dim in HEAD_SIZES, " or ".join(map(str, HEAD_SIZES)), dims.head_dim)
    scaling = rope.get("rope_scaling") or {}
    form = scaling.get("rope_type") or scaling.get("type") or "default"
    _FORMAT.expect("rope_scaling", form in ROPE_TYPES, " or ".join(ROPE_TYPES), form)
    fraction = rope.get("partial_rotary_factor")
    _FORMAT.expect("partial_rotary_factor", fraction in (None, 1, 1.0), "1", fraction)
    window, length = applied_window(config), value_of(config, "max_position_embeddings")
    _FORMAT.expect(
        "sliding_window", window is None or window >= length, f"none, or at least {length}", window
    )


def check_scale(name: str, scale: torch.Tensor) -> None:
    """Refuse (UnsupportedError) a scale that float16, in which the graph stores it, does not hold well.

    Below its smallest normal number float16 loses digits with every halving, and with them the weights.
    """
    if not SMALLEST_SCALE <= scale.item() <= LARGEST_SCALE:
        raise UnsupportedError(
            "TensorRT-Edge-LLM stores FP8 scales in float16, which does not hold this one",
            where=name,
            expected=f"from {SMALLEST_SCALE:.3g} to {LARGEST_SCALE:.3g}",
            found=f"{scale.item():.3g}",
            hint="export the 16-bit model with --format tensorrt-edge-llm, or FP8 for another runtime",
        )
