"""Conversations as a chat model reads them: what was said, which of it the assistant said, and a question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.core.errors import CompressExportError, UsageError
from compressor.data.conversations import render_all, responses
from compressor.data.rows import Conversation, Document, has_response
from compressor.data.sources import Documents, Split
from compressor.data.template import Job, render_jobs
from compressor.data.tokenise import GROUP_DOCUMENTS, MaskArray, TokenArray, encode_marked, grouped

# Two are compared with each other, and one has no interval.
FEWEST_CHATS = 2
_USER = "user"
_HINT = "a chat_template.jinja with {% generation %} blocks beside the tokenizer, or other conversations"


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation through a chat template, with no token but the template's.

    Attributes:
        ids: `[num_tokens]`, all of it.
        mask: `[num_tokens]`, 1 for what the assistant says, with the token that ends each of its turns.
        prompt: `[num_prompt_tokens]`, up to the user's last turn, with the header of an answer.
    """

    ids: TokenArray
    mask: MaskArray
    prompt: TokenArray


@dataclass(frozen=True, kw_only=True)
class Chats:
    """The first conversations of a text that can be used, and how many of those that were read cannot."""

    chats: tuple[Chat, ...]
    num_passed_over: int


def read_chats(
    spec: str,
    split: Split,
    tokenizer: Any,
    *,
    size: int,
    max_new_tokens: int,
    context_length: int | None,
) -> Chats:
    """The first `size` conversations of a text, fewer where there are fewer.

    Passed over are those without an answer of the assistant or a turn of the user, and those that do not fit
    into `context_length` tokens, or not with a reply of `max_new_tokens`.

    Raises:
        UsageError: for a row that is not a conversation, a tokenizer without a chat template, or fewer than
            two conversations.
        UnsupportedError: for a template by which the assistant's turns cannot be told.
    """
    found: list[Chat] = []
    num_read = 0
    for group in grouped(Documents(spec, split, answers=True), min(size, GROUP_DOCUMENTS)):
        chats = _chats(_conversations(group, spec), tokenizer)
        found += [chat for chat in chats if _fits(chat, max_new_tokens, context_length)]
        num_read += len(group)
        if len(found) >= size:
            break
    if len(found) < FEWEST_CHATS:
        raise UsageError(
            "there are too few conversations to measure chat quality on",
            where=f"{spec} ({split} part)",
            expected=f"at least {FEWEST_CHATS} with a turn of the user and an answer, within the context",
            found=f"{len(found)} of {num_read}",
            hint="give more conversations, or lower --chat-max-tokens (--eval-chat-max-tokens in a run)",
        )
    return Chats(chats=tuple(found[:size]), num_passed_over=num_read - len(found))


def _conversations(group: Sequence[Document], spec: str) -> list[Conversation]:
    """Those with an answer and a turn of the user; refuses rows that are none."""
    found = []
    for document in group:
        if not isinstance(document, Conversation):
            raise UsageError(
                "chat quality is measured on conversations, and this row is none",
                where=str(getattr(document, "where", "")) or spec,
                expected='{"messages": [{"role": ..., "content": ...}]}, or an instruction and its output',
                hint="give rows with messages; perplexity on plain text is --data (--eval-data in a run)",
            )
        asks = any(message["role"] == _USER for message in document.messages)
        if asks and has_response(document, where=document.where):
            found.append(document)
    return found


def _chats(conversations: list[Conversation], tokenizer: Any) -> Iterator[Chat]:
    """Those of which the template shows an answer."""
    rendered = render_all(conversations, tokenizer, tracks=True)
    prompts = render_jobs([_question(conversation) for conversation in conversations], tokenizer)
    for conversation, text, prompt in zip(conversations, rendered, prompts, strict=True):
        place = conversation.where
        try:
            spans = responses(conversation, text, tokenizer, where=place)
            ids, mask = encode_marked(text.text, tokenizer, spans, place)
        except CompressExportError as error:  # which speaks of training
            raise type(error)(
                error.what, where=error.where, expected=error.expected, found=error.found, hint=_HINT
            ) from error
        if any(mask[1:]):
            asked, _ = encode_marked(prompt.text, tokenizer, None, place)
            yield Chat(
                ids=np.asarray(ids, np.uint32),
                mask=np.asarray(mask, np.uint8),
                prompt=np.asarray(asked, np.uint32),
            )


def _question(conversation: Conversation) -> Job:
    """The conversation up to the user's last turn, to be answered."""
    last = max(n for n, message in enumerate(conversation.messages) if message["role"] == _USER)
    return Job(**{**vars(conversation), "messages": conversation.messages[: last + 1], "prompts": True})


def _fits(chat: Chat, max_new_tokens: int, context_length: int | None) -> bool:
    longest = max(len(chat.ids), len(chat.prompt) + max_new_tokens)
    return context_length is None or longest <= context_length
