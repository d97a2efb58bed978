"""Chat quality of instruct models."""

from __future__ import annotations

from pathlib import Path

from compressor.api.execution import Execution
from compressor.api.opened import open_measured
from compressor.core.errors import UsageError
from compressor.recipe.recipe import Evaluate
from compressor.runs.artifact import ModelArtifact


def evaluate_chat(
    models: tuple[str, ...],
    out_dir: Path,
    *,
    settings: Evaluate,
    execution: Execution | None = None,
) -> ModelArtifact:
    """Measure what models predict where the assistant speaks, and what they reply; the first is the baseline.

    If any of them was trained or calibrated on these conversations, all are evaluated on their held-out part.

    Raises:
        UsageError: for settings without conversations, a text with too few of them, a model without a chat
            template, or one with another template than the first.
        UnsupportedError: for a template by which the assistant's turns cannot be told.
    """
    from compressor.evaluation.chat_stage import CHAT, chat_config
    from compressor.evaluation.evaluate_stage import unseen_split

    execution = execution or Execution()
    text = settings.chat_data
    if text is None:
        raise UsageError(
            "there are no conversations to measure chat quality on",
            where="--chat-data",
            hint="name some with --chat-data SOURCE",
        )
    others = open_measured(models, out_dir, execution, texts=[text], graphs=False)
    opened = tuple(others.values())
    config = chat_config(settings, unseen_split(text, {seen for model in opened for seen in model.texts}))
    return execution.run(CHAT, config, opened[0], out_dir, others=others)
