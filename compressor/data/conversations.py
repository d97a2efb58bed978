"""Documents as the text that is tokenised, and the parts of it that are responses.

A conversation goes through the tokenizer's chat template with everything that it holds; one whose tools,
calls, reasoning or contents the template leaves out is refused, because training would silently be on
another conversation. To see that, the template renders a copy in which what is in doubt carries a marker.

A template may drop the reasoning of earlier turns, as Qwen3's does: at least one of a row's must be there.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from compressor.core.errors import UnsupportedError, UsageError
from compressor.data.marking import mark_call_, mark_tool_
from compressor.data.messages import REASONING_FIELDS, Message, is_response
from compressor.data.rows import Completion, Conversation, Document, TextPiece
from compressor.data.template import Job, Rendered, render_jobs, template_of

Span = tuple[int, int]
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THOUGHT, _THOUGHT_ENDS = "<think>", "</think>"
# Anything shorter may stand in what the template adds.
_TELLING_CHARACTERS = 8
# Two answers that differ from their first character on.
_OTHER_CONTENTS = ("qzxaxzq", "zxqbqxz")


def render_all(documents: Sequence[Document], tokenizer: Any, *, tracks: bool = False) -> list[Rendered]:
    """Documents as the texts that are tokenised, special tokens of the chat template included.

    They are rendered together, so that the template's process is asked but twice; where `tracks`, with the
    spans of `{% generation %}` blocks.

    Raises:
        UsageError: for a conversation and a tokenizer without a chat template, or with one that refuses it or
            leaves out a part of it.
        VerificationError: for a template that takes too much time or memory.
    """
    chats = [document for document in documents if isinstance(document, Conversation)]
    marked = {index: _marked(chat, ()) for index, chat in enumerate(chats) if _has_calls(chat)}
    jobs = [_job(chat, chat.messages, tracks=tracks) for chat in chats]
    found = render_jobs([*jobs, *(mark.job for mark in marked.values())], tokenizer)
    for mark, shown in zip(marked.values(), found[len(chats) :], strict=True):
        mark.require(shown.text)
    # Contents written otherwise, without their thoughts for instance, or left out.
    doubtful = [
        _marked(chat, unseen)
        for chat, shown in zip(chats, found, strict=False)
        if (unseen := _unseen(chat.messages, shown.text))
    ]
    for mark, shown in zip(doubtful, render_jobs([mark.job for mark in doubtful], tokenizer), strict=True):
        mark.require(shown.text)
    rendered = iter(found)
    return [
        next(rendered) if isinstance(document, Conversation) else Rendered(text=_plain(document), spans=())
        for document in documents
    ]


def responses(document: Document, rendered: Rendered, tokenizer: Any, *, where: str) -> list[Span]:
    """The spans of characters in a document's rendering that are responses.

    These are the completion of a prompt, and the assistant's turns of a conversation with the token that
    ends each: what the template's `{% generation %}` blocks made, or else what follows the rendering of
    the messages before with the header of an answer, whether the template writes that header as a prompt or
    with the answer alone. A message whose `weight` is 0, or `train` false, is none. `rendered` is what
    `render_all` made of the document, with `tracks`.

    Raises:
        UsageError: for a text without responses, or a message that counts in part.
        UnsupportedError: for a template that renders the beginning of a conversation otherwise alone, or by
            whose rendering the beginning of an answer cannot be told.
    """
    if isinstance(document, Completion):
        return [(len(document.prompt), len(rendered.text))]
    if not isinstance(document, Conversation):
        raise UsageError(
            "plain text holds no responses, which --loss-on responses needs",
            where=where,
            expected="conversations, prompt and completion, or instruction and output",
            hint="give such rows, or use --loss-on all",
        )
    if _GENERATION_BLOCK.search(template_of(tokenizer, tools=document.tools)):
        return _spans_of_blocks(document, tokenizer, rendered)
    return _spans_by_prefix(document, tokenizer, rendered.text)


def _plain(document: Document) -> str:
    if isinstance(document, Completion):
        return document.prompt + document.completion
    if isinstance(document, TextPiece):
        return document.text
    assert isinstance(document, str)
    return document


def _job(chat: Conversation, messages: list[Message], *, tracks: bool = False) -> Job:
    return Job(**{**vars(chat), "messages": messages, "tracks": tracks})


def _has_calls(chat: Conversation) -> bool:
    """Whether there are tools, calls or reasoning."""
    names = ("tool_calls", *REASONING_FIELDS)
    return bool(chat.tools) or any(name in message for message in chat.messages for name in names)


def _unseen(messages: Sequence[Message], text: str) -> tuple[int, ...]:
    """Messages whose contents do not stand in the text, one behind the other, beyond doubt."""
    unseen, position = [], 0
    for number, message in enumerate(messages):
        content = (message["content"] or "").strip()
        at = text.find(content, position)
        if at >= 0:
            position = at + len(content)
        if content and (at < 0 or len(content) < _TELLING_CHARACTERS):
            unseen.append(number)
    return tuple(unseen)


@dataclass(frozen=True, kw_only=True)
class _Marked:
    """A copy of a conversation in which what a template might leave out carries markers.

    Attributes:
        job: Its rendering.
        expected: What each marker stands for.
        reasoning: The markers of reasoning, of which one must be rendered.
    """

    job: Job
    expected: dict[str, str]
    reasoning: tuple[str, ...]

    def require(self, text: str) -> None:
        """Refuse a rendering that lacks a marker.

        Raises:
            UsageError: naming what it stands for.
        """
        missing = [what for marker, what in self.expected.items() if marker not in text]
        if self.reasoning and not any(marker in text for marker in self.reasoning):
            missing.append("the reasoning")
        if missing:
            raise UsageError(
                "the chat template leaves out a part of a conversation",
                where=self.job.where or None,
                expected="a template that renders all of it",
                found=f"nothing of {', '.join(missing[:5])}",
                hint="use another chat template, or remove this part from the rows",
            )


def _marked(chat: Conversation, contents: tuple[int, ...]) -> _Marked:
    """A conversation with markers in its tools, calls, reasoning, and the contents of some messages."""
    tools, messages = copy.deepcopy((chat.tools, chat.messages))
    expected: dict[str, str] = {}
    reasoning: list[str] = []

    def marker(what: str) -> str:
        name = f"qzx{len(expected)}xzq"
        expected[name] = what
        return name

    for number, tool in enumerate(tools or []):
        mark_tool_(tool, marker, f"tool {number}")
    for number, message in enumerate(messages):
        for index, call in enumerate(message.get("tool_calls", ())):
            mark_call_(call, marker, f"call {index} of message {number}")
        for name in REASONING_FIELDS:
            thoughts = message.get(name)
            if isinstance(thoughts, str) and thoughts.strip():
                reasoning.append(f"qzr{number}rzq")
                message[name] = thoughts + reasoning[-1]
        thought, ends, answer = (message["content"] or "").partition(_THOUGHT_ENDS)
        if contents and message["role"] == "assistant" and ends and thought.replace(_THOUGHT, "").strip():
            # Templates that know this mark may cut what stands before it, some in the last answer too.
            reasoning.append(f"qzt{number}tzq")
            message["content"] = thought + reasoning[-1] + ends + answer
        if number in contents:
            role = message["role"]
            message["content"] = (message["content"] or "") + marker(f"message {number}, of role {role!r}")
    job = _job(replace(chat, tools=tools), messages)
    return _Marked(job=job, expected=expected, reasoning=tuple(reasoning))


def _spans_of_blocks(chat: Conversation, tokenizer: Any, full: Rendered) -> list[Span]:
    """The template's own spans, but for those of the prompt and of messages that do not count."""
    first = chat.num_prompt_messages
    left_out = [(0, first)] if first else []
    left_out += [
        (number, number + 1)
        for number, message in enumerate(chat.messages[first:], first)
        if message["role"] == "assistant" and not is_response(message, where=chat.where)
    ]
    cuts = sorted({cut for cuts in left_out for cut in cuts} - {0})
    lengths = {0: 0}
    for cut, before in zip(
        cuts, render_jobs([_job(chat, chat.messages[:cut]) for cut in cuts], tokenizer), strict=True
    ):
        _require_prefix(before.text, full.text, chat, tokenizer)
        lengths[cut] = len(before.text)
    return [
        (start, end)
        for start, end in full.spans
        if not any(lengths[low] <= start < lengths[high] for low, high in left_out)
    ]


def _spans_by_prefix(chat: Conversation, tokenizer: Any, full: str) -> list[Span]:
    """From behind the header of every answer to the end of its turn."""
    turns = [
        number
        for number, message in enumerate(chat.messages)
        if number >= chat.num_prompt_messages and is_response(message, where=chat.where)
    ]
    later = [number for number in turns if number]
    ends = [_job(chat, chat.messages[: number + 1]) for number in turns]
    before = [_job(chat, chat.messages[:number]) for number in later]
    prompted = [replace(job, prompts=True) for job in before]
    found = iter(_texts([*ends, *before, *prompted], tokenizer))
    end_texts, before_texts = (dict(zip(numbers, found, strict=False)) for numbers in (turns, later))
    starts = dict(zip(later, found, strict=True))
    for prefix in (*starts.values(), *end_texts.values()):
        _require_prefix(prefix, full, chat, tokenizer)
    headless = {number: text for number, text in starts.items() if text == before_texts[number]}
    if 0 in turns:
        begins = str(tokenizer.bos_token or "")
        headless[0] = begins if full.startswith(begins) else ""
    behind = {number: len(text) for number, text in starts.items()}
    behind |= _behind_headers(chat, headless, end_texts, tokenizer)
    return [
        (behind[number], _end_of_turn(text, behind[number], tokenizer)) for number, text in end_texts.items()
    ]


def _texts(jobs: Sequence[Job], tokenizer: Any) -> list[str]:
    return [found.text for found in render_jobs(jobs, tokenizer)]


def _behind_headers(
    chat: Conversation, before: dict[int, str], ends: dict[int, str], tokenizer: Any
) -> dict[int, int]:
    """Where answers begin whose header the template writes with the answer alone, or not at all.

    That is where renderings of the same turn with other contents part. White space alone is not a header.
    """
    jobs = [
        _job(chat, [*chat.messages[:number], _saying(chat.messages[number], content)])
        for number in before
        for content in _OTHER_CONTENTS
    ]
    texts = iter(_texts(jobs, tokenizer))
    behind = {}
    for (number, prefix), one, other in zip(before.items(), texts, texts, strict=True):
        if one == other:
            raise UnsupportedError(
                "the chat template leaves out an answer, so where it begins cannot be found",
                where=chat.where or None,
                expected="the content of each message of the assistant",
                found=f"nothing of message {number}, rewritten",
                hint="--loss-on all, or a template with {% generation %} blocks in chat_template.jinja",
            )
        text = ends[number]
        common = os.path.commonprefix([one, other, text])  # noqa: RUF071 - these are no paths
        _require_prefix(prefix, common, chat, tokenizer)
        start = len(common) if common[len(prefix) :].strip() else len(prefix)
        content = (chat.messages[number]["content"] or "").strip()
        if text.find(content, start) < 0 <= (at := text.rfind(content, len(prefix))):
            start = at  # the content begins as what the template writes before others
        behind[number] = start
    return behind


def _saying(message: Message, content: str) -> Message:
    """The message with this content alone, without calls and reasoning."""
    left_out = ("tool_calls", *REASONING_FIELDS)
    kept = {name: value for name, value in message.items() if name not in left_out}
    return cast(Message, {**kept, "content": content})


def _end_of_turn(text: str, start: int, tokenizer: Any) -> int:
    """Where the turn at the end of `text` ends: line breaks behind its end token are the template's."""
    stripped = text.rstrip()
    ends = tuple(str(token) for token in tokenizer.get_added_vocab())
    return max(start, len(stripped)) if ends and stripped.endswith(ends) else len(text)


def _require_prefix(prefix: str, full: str, chat: Conversation, tokenizer: Any) -> None:
    if not full.startswith(prefix):
        raise UnsupportedError(
            "the chat template renders the first turns of this conversation differently when they are alone, "
            "so its responses cannot be found",
            where=chat.where or None,
            expected="a template with {% generation %} blocks, or whose renderings begin with each other",
            found=str(getattr(tokenizer, "name_or_path", "")) or None,
            hint="--loss-on all, or a template with {% generation %} blocks in chat_template.jinja",
        )
