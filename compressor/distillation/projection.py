"""The map from the student's width to the teacher's, where their states are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compressor.core.processes import is_main
from compressor.training.callbacks import TrainingExtension
from compressor.training.sharding import full_state, load_full_state_

PROJECTION_FILE = "projection.safetensors"
PROJECTION_SEED = 0


def make_projection(student: Any, teacher: Any) -> nn.Linear | None:
    """One bias-free linear map shared by all compared states (Minitron, section 2.4); None at equal widths.

    It begins random, with a seed of its own, so that equal runs begin equal.
    """
    widths = (student.config.hidden_size, teacher.config.hidden_size)
    if widths[0] == widths[1]:
        return None
    projection = nn.Linear(*widths, bias=False)
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    with torch.no_grad():
        projection.weight.normal_(std=widths[0] ** -0.5, generator=generator)
    return projection.to(next(student.parameters()).device)


class ProjectionState(TrainingExtension):
    """Keeps a projection in the checkpoints, which otherwise hold the student alone."""

    def __init__(self, projection: nn.Linear) -> None:
        self._projection = projection

    def save(self, directory: Path) -> None:
        """Write the projection beside the student."""
        state = full_state(self._projection)
        if is_main():
            save_file(state, directory / PROJECTION_FILE)

    def load(self, directory: Path) -> None:
        """Take it up again."""
        load_full_state_(self._projection, load_file(directory / PROJECTION_FILE))
