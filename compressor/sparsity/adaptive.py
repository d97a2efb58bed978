"""Training sparse weights: a fixed mask, or one that is selected again and again (Adaptive Sparse Trainer).

AST (arXiv 2407.20584): the forward pass uses m ⊙ W, the gradient g reaches all of W, and every k steps m
becomes the largest |W| of each group. Masked weights decay, ever more until step T0:

    lambda_t = alpha min(t, T0)
    mu = b1 mu + (1 - b1) g            u = mu + lambda_t (not m) ⊙ W          v = b2 v + (1 - b2) u²
    W -= lr (u / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

The decay enters u and v but never the first moment mu. t is part of the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from compressor.core.processes import is_main
from compressor.models.sparse.layers import SparseLinear, require_rowwise
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import Pattern
from compressor.models.sparse.record import MASKS_FILE, read_masks, write_masks
from compressor.training.config import TrainingConfig
from compressor.training.extension import TrainingExtension

BETAS = (0.9, 0.95)
EPSILON = 1e-8


class AnnealedAdamW(torch.optim.Optimizer):
    """AdamW whose sparse weights feel the annealed mask decay; the others are plain AdamW's."""

    def __init__(
        self,
        others: list[nn.Parameter],
        sparse: list[SparseLinear],
        *,
        lr: float,
        mask_decay: float,
        ramp_steps: int,
    ) -> None:
        """Set up.

        Args:
            others: Parameters without a mask.
            sparse: Layers whose weights have one; read at every step.
            lr: Learning rate.
            mask_decay: alpha T0, the decay from the ramp's end on.
            ramp_steps: T0.
        """
        self._mask_decay, self._ramp_steps = mask_decay, ramp_steps
        self._layers = sparse
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": [layer.weight for layer in sparse], "is_sparse": True},
        ]
        defaults = {"lr": lr, "is_sparse": False, "annealing_step": 0}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Raises:
            UnsupportedError: when sharding has flattened a sparse weight.
        """
        assert closure is None
        for group in self.param_groups:
            group["annealing_step"] += 1
            masks: list[torch.Tensor | None] = [None] * len(group["params"])
            if group["is_sparse"]:
                masks = [layer.keep_mask for layer in self._layers]
            for parameter, mask in zip(group["params"], masks, strict=True):
                if group["is_sparse"]:  # the trainer may have sharded it since its mask was installed
                    require_rowwise("a sparse weight in the optimizer", parameter)
                if parameter.grad is not None:
                    self._update_(parameter, group, mask)

    def decay_at(self, step: int) -> float:
        """lambda_t."""
        return self._mask_decay * min(step, self._ramp_steps) / self._ramp_steps

    def _update_(self, parameter: nn.Parameter, group: dict[str, Any], mask: torch.Tensor | None) -> None:
        state, step = self.state[parameter], group["annealing_step"]
        if not state:
            state["mu"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = BETAS
        assert parameter.grad is not None
        mu, v, u = state["mu"], state["v"], parameter.grad
        mu.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
        if mask is not None:
            u = torch.where(_like(mask, parameter), 0, parameter).mul_(self.decay_at(step)).add_(mu)
        v.mul_(beta2).addcmul_(u, u, value=1 - beta2)
        scale = (v / (1 - beta2**step)).sqrt_().add_(EPSILON)
        parameter.addcdiv_(mu if mask is None else u, scale, value=-group["lr"] / (1 - beta1**step))


def _like(mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A mask sharded as its weight is."""
    if isinstance(weight, DTensor):
        return distribute_tensor(mask, weight.device_mesh, weight.placements, src_data_rank=None)
    return mask


class FixedMasks(TrainingExtension):
    """Fixed masks: what they drop is exactly zero after every step."""

    def __init__(self, layers: Mapping[str, SparseLinear]) -> None:
        """Keep the masks of these layers, named by their weight."""
        self.layers = dict(layers)

    def masks(self) -> dict[str, torch.Tensor]:
        """Every mask, by the full name of its weight."""
        return {name: layer.keep_mask for name, layer in self.layers.items() if layer.keep_mask is not None}

    @torch.no_grad()
    def apply_(self) -> None:
        """Set what the masks drop to zero.

        Raises:
            UnsupportedError: when sharding has flattened a weight.
        """
        for name, layer in self.layers.items():
            require_rowwise(name, layer.weight)
            if layer.keep_mask is not None:
                layer.weight.masked_fill_(_like(~layer.keep_mask, layer.weight), 0)

    def after_step(self, step: int) -> None:
        """Drop what an update may have raised."""
        self.apply_()

    def save(self, directory: Path) -> None:
        """Write the packed masks into a checkpoint."""
        if is_main():
            write_masks(directory / MASKS_FILE, self.masks())

    def load(self, directory: Path) -> None:
        """Restore the masks exactly."""
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in self.layers.items()}
        for name, mask in read_masks(directory / MASKS_FILE, shapes).items():
            layer = self.layers[name]
            assert layer.keep_mask is not None
            layer.keep_mask.copy_(mask)


class MovingMasks(FixedMasks):
    """The Adaptive Sparse Trainer's masks, selected again by |W| every k steps."""

    def __init__(
        self,
        layers: Mapping[str, SparseLinear],
        *,
        pattern: Pattern,
        interval: int,
        mask_decay: float,
        ramp_steps: int,
    ) -> None:
        """Set up: k, alpha T0 and T0, over layers whose masks pass gradients straight through."""
        super().__init__(layers)
        self._pattern, self._interval = pattern, interval
        self._mask_decay, self._ramp_steps = mask_decay, ramp_steps

    def make_optimizer(self, module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
        """AdamW with annealed mask decay over everything that trains."""
        layers = list(self.layers.values())
        own = {id(layer.weight) for layer in layers}
        others = [p for p in module.parameters() if p.requires_grad and id(p) not in own]
        mask_decay, ramp_steps = self._mask_decay, self._ramp_steps
        return AnnealedAdamW(
            others, layers, lr=config.learning_rate, mask_decay=mask_decay, ramp_steps=ramp_steps
        )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Select the masks again when it is time."""
        if step % self._interval:
            return
        for name, layer in self.layers.items():
            assert layer.keep_mask is not None
            weight = layer.weight
            require_rowwise(name, weight)
            full = weight.full_tensor() if isinstance(weight, DTensor) else weight
            layer.keep_mask.copy_(keep_mask(full.abs(), self._pattern))
