"""Sequences longer than the positions that a model was trained on."""

from __future__ import annotations

from pathlib import Path

from compressor.core.console import Console
from compressor.models.checkpoint import read_config
from compressor.models.config.class_defaults import value_of


def num_positions(checkpoint: Path) -> int:
    """The positions that a checkpoint's config declares, or its family's class where the config is silent."""
    return int(value_of(read_config(checkpoint), "max_position_embeddings"))


def warn_beyond_positions(checkpoint: Path, num_tokens: int, console: Console) -> None:
    """Warn where sequences go beyond them: torch computes on, with positions that no training has shown."""
    limit = num_positions(checkpoint)
    if num_tokens > limit:
        console.warn(
            f"sequences of {num_tokens:,} tokens are longer than the {limit:,} positions of {checkpoint}: it "
            "has not learned what lies beyond them"
        )
