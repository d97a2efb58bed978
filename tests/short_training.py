"""A training of a few steps: its settings, and the whole state of what it trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compressor.training.config import TrainingConfig
from compressor.training.sharding import whole


def make_config(**changes: Any) -> TrainingConfig:
    fields = {
        "max_steps": 6,
        "batch_size": 2,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "min_learning_rate_ratio": 0.1,
        "warmup_steps": 1,
        "checkpoint_steps": 2,
        "seed": 0,
        "bf16": False,
        "use_cpu": True,
    }
    return TrainingConfig(**{**fields, **changes})


def full_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Whole parameters by name; every process must take part."""
    return {name: whole(parameter.detach()) for name, parameter in module.named_parameters()}
