"""A training of a few steps: its text, its settings, and the whole state of what it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.data.mixing import DomainWindows, WindowStream
from compressor.data.packing import TokenWindows
from compressor.training.config import TrainingConfig
from compressor.training.sharding import whole


def stream_of(directory: Path, *domains: Any, seq_len: int) -> WindowStream:
    """A stream over equally weighted domains d0, d1, ... of these token ids."""
    directory.mkdir(exist_ok=True)
    opened = []
    for index, ids in enumerate(domains):
        path = directory / f"{index}.bin"
        np.asarray(ids).astype("<u4").tofile(path)
        opened.append(DomainWindows(name=f"d{index}", windows=TokenWindows(path, seq_len=seq_len)))
    return WindowStream(opened, [1.0] * len(opened), seed=0)


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


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(full_state(one), full_state(other), rtol=0, atol=0)
