"""Final hidden states of a model's body, and those inside it that a loss compares.

What is compared behind layer k is the decoder layer's output: the residual stream after its MLP was
added, before the next layer's norm (and before the final norm for the last layer). Of the embeddings it
is the embedding's output, as it enters layer 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from compressor.calibration.hooks import observed
from compressor.distillation.head import Head, head_of
from compressor.models.adapter import ModelAdapter
from compressor.models.packed import packed_arguments

EMBEDDING = -1  # the "layer" before layer 0


class States(NamedTuple):
    """Hidden states of a batch.

    Attributes:
        last: After the final norm, `[batch, seq_len, hidden_size]`.
        inner: Outputs of the layers asked for, `EMBEDDING` among them, of the same shape.
    """

    last: torch.Tensor
    inner: dict[int, torch.Tensor]


class Body(nn.Module):
    """A causal language model as the loss sees it: hidden states from `forward`, then a head.

    A module, so that a teacher can be sharded by itself: the head's weight is read after the forward,
    when it is whole.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, layers: tuple[int, ...] = ()
    ) -> States:
        """Hidden states of a batch `[batch, seq_len]`; `layers` as in `States.inner`."""
        return body_states(self.model, input_ids, position_ids, layers)

    def head(self) -> Head:
        """The LM head."""
        return head_of(self.model)


def body_states(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None, layers: tuple[int, ...]
) -> States:
    """Run a model without its head."""
    inner: dict[int, torch.Tensor] = {}
    kept = [(_module_of(model, layer), partial(inner.__setitem__, layer)) for layer in layers]
    with observed(outputs=kept):
        packed = {} if position_ids is None else packed_arguments(model, position_ids)
        last = ModelAdapter(model).body(input_ids, **packed, use_cache=False)
    return States(last.last_hidden_state, inner)


def _module_of(model: Any, layer: int) -> nn.Module:
    if layer == EMBEDDING:
        embedding: nn.Module = model.get_input_embeddings()
        return embedding
    return ModelAdapter(model).layers[layer].module
