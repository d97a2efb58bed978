"""From final hidden states to logits, as each model's own forward does it.

Some families transform the products with the LM head: Gemma 2 caps them smoothly (c tanh(l / c),
`final_logit_softcapping`), Granite divides (`logits_scaling`), Cohere multiplies (`logit_scale`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from compressor.core.errors import UnsupportedError
from compressor.distillation.losses import wide


@dataclass(frozen=True, kw_only=True)
class Head:
    """An LM head: logits = softcap tanh(scale hidden weight^T / softcap).

    Attributes:
        weight: `[vocab_size, hidden_size]`.
        scale: What the products are multiplied by.
        softcap: Bound of the logits' size; None for none.
    """

    weight: torch.Tensor
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        """`[T, V]`, in float32 at least; the matrix product in the dtype of the arguments."""
        logits = wide(hidden_TH @ self.weight.T)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def products_gradient_(self, gradient_TV: torch.Tensor, logits_TV: torch.Tensor) -> torch.Tensor:
        """Turn the gradient by the logits into that by the matrix products; both arguments are consumed."""
        if self.softcap is not None:
            gradient_TV.mul_(logits_TV.div_(self.softcap).square_().neg_().add_(1))
        return gradient_TV if self.scale == 1 else gradient_TV.mul_(self.scale)

    def frozen(self, dtype: torch.dtype) -> Head:
        """The same head in another dtype, to which no gradients flow."""
        return replace(self, weight=self.weight.detach().to(dtype))


def head_of(model: Any) -> Head:
    """A causal language model's head; its weight is read now, so inside the forward of what is sharded.

    Raises:
        UnsupportedError: when the head has a bias.
    """
    embeddings, config = model.get_output_embeddings(), model.config
    if getattr(embeddings, "bias", None) is not None:
        raise UnsupportedError(
            "an LM head with a bias cannot be distilled",
            where="lm_head.bias",
            expected="no bias",
            hint="use a model without this bias; --tokens 0 prunes without distillation",
        )
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(weight=embeddings.weight, scale=scale, softcap=softcap)
