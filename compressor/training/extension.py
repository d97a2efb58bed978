"""What a kind of training adds to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from compressor.training.config import TrainingConfig


class TrainingExtension:
    """Hooks into the training loop; as it stands, none of them does anything.

    Everything it changes outside the trained module is saved with every checkpoint and loaded again.
    Every process calls every method; files are written by the main one.
    """

    def make_optimizer(self, module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer | None:
        """The optimizer to use; None for AdamW with the config's settings."""
        return None

    def before_training(self) -> None:
        """Called before the first step; not when a training is continued."""

    def after_step(self, step: int) -> None:
        """Called after every optimizer step, the first being 1."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Tensors to keep in checkpoints beside the module's parameters; restored in place."""
        return {}

    def save(self, directory: Path) -> None:
        """Write what else a resumed run needs into a checkpoint."""

    def load(self, directory: Path) -> None:
        """Read what `save` wrote, after all tensors have been restored."""
