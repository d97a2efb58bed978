"""A loss on logits that never exist for more than a chunk of tokens.

Each chunk of tokens goes through the head, and the gradients by hidden states and head are computed on
the way, not recomputed later: memory is that of a chunk's logits, time that of the plain loss.

Legend: N positions of the batch, T those of a chunk, V vocabulary, H hidden_size (each model its own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from compressor.distillation.head import Head

CHUNK_VALUES = 3 << 23  # a loss by autograd holds them eight times over: below 1 GiB with head gradients


# A loss on a chunk: of logits `[T, V]`, not to be changed, and where in the batch these tokens are `[T]`, the
# loss of every token `[T]` and its gradient by the logits `[T, V]`, both of their own memory.
Criterion = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class TeacherLogits:
    """Where a teacher's logits come from: its final hidden states `[N, H]`, and its head."""

    hidden: torch.Tensor
    head: Head

    def __call__(self, positions_T: torch.Tensor) -> torch.Tensor:
        """The teacher's logits at these positions."""
        return self.head.logits(self.hidden[positions_T].to(self.head.weight.dtype))


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products with this weight: autocast's where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def chunked_loss(
    hidden_NH: torch.Tensor,
    head: Head,
    criterion: Criterion,
    positions: torch.Tensor,
    *,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A criterion over the counted positions; gradients reach hidden states and head weight.

    Args:
        hidden_NH: Final hidden states, after the last norm.
        head: Their LM head. Its products run in the ambient autocast dtype.
        criterion: The loss.
        positions: Ascending indices into N of the positions that count; the others contribute nothing.
        chunk_tokens: Tokens per chunk; by default as many as make `CHUNK_VALUES` logits.

    Returns:
        The sum over the counted positions, and the detached loss of every position `[N]`, 0 where it does
        not count.
    """
    chunk_tokens = chunk_tokens or max(1, CHUNK_VALUES // head.weight.shape[0])
    needs_gradient = torch.is_grad_enabled() and (hidden_NH.requires_grad or head.weight.requires_grad)
    losses: tuple[torch.Tensor, torch.Tensor] = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight, head, criterion, positions.split(chunk_tokens), needs_gradient
    )
    return losses


def autograd_gradient(
    criterion: Callable[[torch.Tensor], torch.Tensor], logits_TV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pure loss of every token, and its gradient by the logits, inside a forward that records nothing."""
    with torch.enable_grad():
        leaf = logits_TV.detach().requires_grad_()
        losses = criterion(leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        head: Head,
        criterion: Criterion,
        chunks: tuple[torch.Tensor, ...],
        needs_gradient: bool,  # noqa: FBT001 - autograd passes arguments by position
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = compute_dtype(weight_VH)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            head = head.frozen(dtype)
            exact = torch.float64 if dtype == torch.float64 else torch.float32
            losses = torch.zeros(hidden_NH.shape[0], dtype=exact, device=hidden_NH.device)
            if needs_gradient:
                grad_hidden = torch.zeros_like(hidden_NH)
                grad_head = torch.zeros_like(weight_VH, dtype=exact)
            for positions in chunks:
                hidden = hidden_NH[positions].to(dtype)
                logits = head.logits(hidden)
                losses[positions], gradient = criterion(logits, positions)
                if needs_gradient:
                    products = head.products_gradient_(gradient, logits).to(dtype)
                    grad_hidden[positions] = (products @ head.weight).to(grad_hidden.dtype)
                    grad_head += products.T @ hidden
        if needs_gradient:
            ctx.save_for_backward(grad_hidden, grad_head.to(weight_VH.dtype))
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale, grad_head * scale, None, None, None, None
