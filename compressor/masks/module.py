"""What is trained: a model under masks, the masks, and the multipliers of their constraint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.masks.applied import MaskValues
from compressor.masks.mask_set import MaskSet
from compressor.training.config import TrainingConfig
from compressor.training.extension import TrainingExtension

# Peak learning rate of the multipliers, as published.
MULTIPLIER_RATE = 1.0
_BETAS = (0.9, 0.95)


class MaskedModule(DistillationModule):
    """A `DistillationModule` whose student runs under masks that are drawn anew for every step.

    The student must be `masked` by `values`, which is what its forward passes see.

    Attributes:
        masks: The masks and their constraints.
        values: The masks of the forward pass that runs.
        step: Optimizer steps so far.
    """

    step: torch.Tensor

    def __init__(
        self,
        student: Any,
        teacher: Any | None,
        loss: LossConfig,
        masks: MaskSet,
        *,
        max_steps: int,
        warmup_steps: int,
    ) -> None:
        """Put masks on a student.

        Args:
            student: The whole model.
            teacher: The same model without masks, frozen; None where no loss needs it.
            loss: On the masked model's logits.
            masks: On the device of the student.
            max_steps: Of the training.
            warmup_steps: Over which the constraints' target rises.
        """
        super().__init__(student, teacher, loss)
        self.masks = masks
        self.values = MaskValues()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)
        self._max_steps, self._warmup_steps = max_steps, warmup_steps

    @property
    def progress(self) -> float:
        """Share of the training that is over."""
        return min(1.0, int(self.step) / self._max_steps)

    def forward(self, *arguments: Any, **batch: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch under this step's masks, with the batch's part of the step's penalty."""
        self.values = self.masks.drawn(int(self.step))
        found = super().forward(*arguments, **batch)
        warmth = 1.0 if not self._warmup_steps else min(1.0, int(self.step) / self._warmup_steps)
        penalty = self.masks.penalty(progress=self.progress, warmth=warmth)
        total = batch.get("num_tokens")
        share = 1.0 if total is None else found["window_tokens"].sum() / total
        return {**found, "loss": found["loss"] + share * penalty}

    @torch.no_grad()
    def cross_entropy(self, input_ids: torch.Tensor, *, of_teacher: bool) -> tuple[torch.Tensor, int]:
        """As the base does; the student's under masks that are not drawn."""
        self.values = self.masks.expected(progress=self.progress)
        return super().cross_entropy(input_ids, of_teacher=of_teacher)


class MaskTraining(TrainingExtension):
    """Masks that learn at a rate of their own, and multipliers that ascend."""

    def __init__(self, module: MaskedModule, *, learning_rate: float) -> None:
        """Train a module's masks with this peak."""
        self._module, self._learning_rate = module, learning_rate

    def make_optimizer(self, module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
        """AdamW: weights at the config's rate, masks and multipliers at theirs."""
        masks = self._module.masks
        weights = [weight for weight in self._module.student.parameters() if weight.requires_grad]
        groups: list[dict[str, Any]] = [
            *([{"params": weights, "lr": config.learning_rate}] if weights else []),
            {"params": list(masks.gates.parameters()), "lr": self._learning_rate},
            {"params": list(masks.constraints.parameters()), "lr": MULTIPLIER_RATE, "maximize": True},
        ]
        return torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0)

    def after_step(self, step: int) -> None:
        """Count the step, and keep the masks' parameters where they can still move."""
        self._module.step.fill_(step)
        self._module.masks.after_step_()

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The number of steps, which decides noise, target and width."""
        return {"mask_step": self._module.step}
