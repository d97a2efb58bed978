"""The command that makes a stage's directory again, for errors about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# How a stage in a directory is made again.
Redo = Callable[[str, Path], str]
# Stages whose command has another name; every format is a stage of its own under one command.
_COMMANDS = {
    "correct": "correct-teacher",
    "logits": "cache-logits",
    "recover": "sparsify",
}
# What a command makes on its way, in directories that no option names: once gone, they are made again.
_ON_THE_WAY = ("search-scores", "search-trial", "source")


def redo_by_command(stage: str, path: Path) -> str:
    """The command that makes a stage's directory again."""
    if stage in _ON_THE_WAY:
        return f"delete {path}, then repeat the command that made it"
    command = _COMMANDS.get(stage, stage.partition("-")[0])
    return f"compress-export {command} ... -o {path} --overwrite"
