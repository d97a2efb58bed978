"""What a row of a data set holds: a text, or a conversation that the tokenizer's chat template renders."""

from __future__ import annotations

from typing import Any

from compressor.errors import UsageError

TEXT_FIELD = "text"
MESSAGES_FIELD = "messages"

Message = dict[str, str]
Document = str | list[Message]


def document_of(row: Any, *, where: str) -> Document:
    """A row's text; without one, its conversation.

    Raises:
        UsageError: for a row that holds neither.
    """
    text = row.get(TEXT_FIELD) if isinstance(row, dict) else None
    if isinstance(text, str):
        return text
    messages = row.get(MESSAGES_FIELD) if isinstance(row, dict) else None
    if messages is None:
        raise UsageError(
            f"a row has no {TEXT_FIELD!r} string and no {MESSAGES_FIELD!r}",
            where=where,
            expected=f'{{"{TEXT_FIELD}": ...}} or {{"{MESSAGES_FIELD}": [{{"role": ..., "content": ...}}]}}',
        )
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise UsageError(
            "a row's messages are no conversation",
            where=where,
            expected='[{"role": "user", "content": "..."}, ...]',
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def render(document: Document, tokenizer: Any) -> str:
    """A document as the text that is tokenised, special tokens of the chat template included.

    Raises:
        UsageError: for a conversation and a tokenizer without a chat template, or one that refuses it.
    """
    from jinja2.exceptions import TemplateError

    if isinstance(document, str):
        return document
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the text holds conversations, and the tokenizer has no chat template",
            where=str(getattr(tokenizer, "name_or_path", "")) or None,
            expected=f"rows with a {TEXT_FIELD!r} string, or a model with a chat template",
        )
    try:
        return str(tokenizer.apply_chat_template(document, tokenize=False))
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in document)
        raise UsageError(
            "the chat template refuses a conversation", expected=error, found=f"roles {roles}"
        ) from error


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
    )
