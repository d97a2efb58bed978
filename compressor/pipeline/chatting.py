"""A run's conversations for chat quality: which part of them is read, and what is refused before any work."""

from __future__ import annotations

from typing import Any

from compressor.evaluation.chat_stage import ChatStageConfig, chat_config, require_chats
from compressor.pipeline.preflight import unseen_part
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ModelArtifact


def chat_config_of(recipe: Recipe, seen: tuple[str, ...]) -> ChatStageConfig:
    """What the run measures chat quality on; `seen` are fingerprints of the teacher's texts."""
    data = recipe.evaluate.chat_data
    assert data is not None, "chat quality was asked for"
    return chat_config(recipe.evaluate, unseen_part(recipe, data, seen))


def require_chat_choices(recipe: Recipe, teacher: ModelArtifact, tokenizer: Any) -> None:
    """Refuse, before any work, conversations that the teacher could not be measured on.

    Raises:
        UsageError, UnsupportedError: see `require_chats`.
    """
    if recipe.evaluate.chat_data is not None:
        require_chats(chat_config_of(recipe, teacher.texts), teacher.path, tokenizer)
