"""Attention that stays inside the documents packed into a window.

Most of transformers' model classes build their mask with `create_causal_mask`, which reads document
boundaries from restarting position ids. Nemotron before transformers 5, and code from a hub
repository, do not: without a mask of our own their documents would silently see each other.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

_MASK_BUILDER = "create_causal_mask"


def packed_arguments(model: Any, position_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What to pass to a model's forward, with `use_cache=False`, for isolated documents.

    Position ids `[batch, seq_len]` restart at 0 with every document; the model may be sharded.
    """
    if masks_by_position_ids(model):
        return {"position_ids": position_ids}
    mask = document_mask(position_ids, dtype=model.get_input_embeddings().weight.dtype)
    return {"position_ids": position_ids, "attention_mask": mask}


def masks_by_position_ids(model: Any) -> bool:
    """Whether the model's class reads document boundaries from position ids."""
    classes = type(model.base_model).__mro__  # sharding puts a class of its own before transformers'
    modules = {cls.__module__ for cls in classes if cls.__module__.startswith("transformers.models.")}
    return any(hasattr(sys.modules[name], _MASK_BUILDER) for name in modules)


def document_mask(position_ids: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """The additive causal mask inside documents, `[batch, 1, seq_len, seq_len]`: 0 or the dtype's minimum."""
    document = (position_ids == 0).cumsum(dim=1)
    same = document[:, :, None] == document[:, None, :]
    seen = same & torch.ones_like(same[0]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
