"""The map from the student's width to the teacher's, where their states are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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
