"""What a row of a table holds: a text, a prompt with its completion, or a conversation.

Recognised, in this order, is the first of these fields that is filled: `text`, `content`, `messages`,
`conversations` (ShareGPT), `prompt` with `completion`, `instruction` with `input` and `output`; `response`,
`context` and `system_prompt` are other names of `completion` or `output`, `input` and `system`. An empty
field never goes before a filled one; a row whose fields are all empty, or that has no answer, is left out.
Where responses are wanted, the fields that tell them from the rest go before a text rendered beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from compressor.core.errors import UsageError
from compressor.data.messages import (
    CORRECT,
    Message,
    decoded,
    is_response,
    read_messages,
    require_shallow,
    says_something,
)

TEXT_FIELDS = ("text", "content")
CONVERSATION_FIELDS = ("messages", "conversations", "conversation")
_SYSTEM, _TOOLS = ("system", "system_prompt"), ("tools", "functions")
# Everything that is read of a row; columns of other names are not even decoded.
ROW_FIELDS = (
    *TEXT_FIELDS,
    *CONVERSATION_FIELDS,
    *("prompt", "completion", "response", "instruction", "input", "context", "output", "history"),
    *_SYSTEM,
    *_TOOLS,
    "chat_template_kwargs",
)
Row: TypeAlias = Mapping[str, object]
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """A piece of running text, cut behind a line.

    Attributes:
        text: As it stands in the file.
        begins: Whether a document begins with it.
        ends: Whether an end-of-text token follows, as another document does.
    """

    text: str
    begins: bool
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and what follows it, as one text."""

    prompt: str
    completion: str
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a chat template renders.

    Attributes:
        messages: With `role` and what else each holds; a content is a string, or None beside calls or
            reasoning.
        tools: JSON schemas of the functions that may be called.
        extras: Further arguments of the template (`chat_template_kwargs`).
        num_prompt_messages: How many messages are the prompt; the assistant's among them are not responses.
        where: Its place, for messages.
    """

    messages: list[Message]
    tools: list[dict[str, object]] | None = None
    extras: Mapping[str, object] = field(default_factory=dict)
    num_prompt_messages: int = 0
    where: str = ""


# A row's text is a plain string.
Document = str | TextPiece | Completion | Conversation


def document_of(row: object, *, where: str, answers: bool = False) -> Document | None:
    """What a row holds; None for a row whose fields are all empty.

    Where `answers`, that is responses, are wanted, a text goes behind the other fields. `where` is the row's
    place, for messages.

    Raises:
        UsageError: for a row without a known field, or with one that is not what its name says.
    """
    if not isinstance(row, dict) or not any(name in row for name in LEADING_FIELDS):
        raise _unusable(
            "a row has no 'text' string and no 'messages'",
            where,
            expected='{"text": ...}, {"messages": [{"role": ..., "content": ...}]}, or one of '
            + ", ".join(map(repr, LEADING_FIELDS)),
            found=", ".join(map(repr, list(row)[:10])) if isinstance(row, dict) else type(row).__name__,
        )
    text = _text(row, where)
    if text.strip() and not answers:
        return text
    found, is_filled = _structured(row, where)
    if is_filled and found is None and text.strip():
        # Its answer is empty: a document all the same, as it is one where the loss is on all.
        return Completion(prompt=text, completion="", where=where)
    return found if is_filled else text or None


def has_response(document: Document, *, where: str) -> bool:
    """Whether a document holds a response that counts.

    Raises:
        UsageError: for a response that counts in part.
    """
    if isinstance(document, Completion):
        return bool(document.completion)
    if not isinstance(document, Conversation):
        return False
    # All of them are asked, so that a weight that cannot be used is found.
    own = document.messages[document.num_prompt_messages :]
    found = [is_response(message, where=where) and says_something(message) for message in own]
    return any(found)


def fields_beside_text(row: Row) -> dict[str, object]:
    """What a row with a text holds in the other fields that are read, by the name of the field."""
    return {name: row[name] for name in ROW_FIELDS if name not in TEXT_FIELDS and row.get(name)}


LEADING_FIELDS = (*TEXT_FIELDS, *CONVERSATION_FIELDS, "prompt", "completion", "instruction", "output")


def _text(row: Row, where: str) -> str:
    """The first filled field of text, else an empty one."""
    blank = ""
    for name in TEXT_FIELDS:
        text = row.get(name)
        if text is not None and not isinstance(text, str):
            raise _unusable(f"a row's {name!r} is not a string", where, found=type(text).__name__)
        if text and text.strip():
            return text
        blank = blank or text or ""
    return blank


def _structured(row: Row, where: str) -> tuple[Document | None, bool]:
    """A conversation, a completion or an instruction, and whether their fields are filled at all."""
    for name in CONVERSATION_FIELDS:
        if (messages := decoded(row.get(name))) not in (None, [], ""):
            return _conversation(row, messages, where), True
    if row.get("prompt") or row.get("completion"):
        return _completion(row, where), True
    if row.get("instruction") or row.get("output"):
        return _instruction(row, where), True
    return None, False


def replace_surrogates(value: object) -> tuple[object, int]:
    """A JSON value with U+FFFD in place of surrogates without a partner, and how many there were.

    JSON can write half of a UTF-16 pair as an escape; no tokenizer takes it.
    """
    if isinstance(value, str):
        return _LONE_SURROGATE.subn("\ufffd", value)
    if isinstance(value, list):
        items = [replace_surrogates(item) for item in value]
        return [item for item, _ in items], sum(number for _, number in items)
    if isinstance(value, dict):
        pairs = [(replace_surrogates(key), replace_surrogates(item)) for key, item in value.items()]
        return {key: item for (key, _), (item, _) in pairs}, sum(one + two for (_, one), (_, two) in pairs)
    return value, 0


def without_nulls(row: Row) -> dict[str, object]:
    """A row of an Arrow table, its columns without the nulls that stand for fields which other rows have."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _conversation(row: Row, raw: object, where: str) -> Conversation | None:
    messages = _with_system(row, read_messages(raw, where), where)
    if not any(says_something(message) for message in messages):
        return None
    return Conversation(messages=messages, tools=_tools(row, where), extras=_extras(row, where), where=where)


def _with_system(row: Row, messages: list[Message], where: str) -> list[Message]:
    """Messages behind the system's that a row holds beside them."""
    system = _string(row, _SYSTEM, where)
    if not system:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if (own := messages[0]["content"]) != system:
        raise _unusable(
            "a row's 'system' is not what its conversation begins with",
            where,
            expected=f"one of them, or twice the same: {system[:80]!r}",
            found=repr((own or "")[:80]),
        )
    return messages


def _string(row: Row, names: Sequence[str], where: str) -> str:
    """The text of the first filled field of these; an empty one where none is filled."""
    value = _first(row, *names) or ""
    if not isinstance(value, str):
        raise _unusable(f"a row's {names[0]!r} is not a string", where, found=type(value).__name__)
    return value


def _completion(row: Row, where: str) -> Document:
    """Two strings that follow each other, or two lists of messages."""
    prompt, completion = row.get("prompt"), _first(row, "completion", "response")
    text = prompt or ""
    if isinstance(text, str) and isinstance(completion, str):
        _refuse_beside_strings(row, where)
        return Completion(prompt=text, completion=completion, where=where)
    if isinstance(prompt, list) and isinstance(completion, list) and prompt and completion:
        first = _with_system(row, read_messages(prompt, where), where)
        return Conversation(
            messages=[*first, *read_messages(completion, where)],
            tools=_tools(row, where),
            extras=_extras(row, where),
            num_prompt_messages=len(first),
            where=where,
        )
    raise _unusable(
        "a row's prompt and completion are neither two strings nor two conversations",
        where,
        found=f"{type(prompt).__name__} and {type(completion).__name__}",
    )


def _refuse_beside_strings(row: Row, where: str) -> None:
    """Refuse what only a chat template could write, beside strings that none renders."""
    found = [name for name in (*_SYSTEM, *_TOOLS) if decoded(row.get(name)) not in (None, "", [])]
    if found:
        raise _unusable(
            "a row whose prompt and completion are strings cannot hold these fields as well",
            where,
            expected="two strings alone, or two lists of messages",
            found=", ".join(map(repr, found)),
            hint="give the row as 'messages', or remove these fields",
        )


def _instruction(row: Row, where: str) -> Conversation | None:
    """Alpaca's fields, or Dolly's, as a conversation: instruction and input are the user's turn."""
    answers = ("output", "response")
    synonyms = (("instruction",), ("input", "context"), answers, _SYSTEM)
    instruction, given, output, system = (_string(row, names, where) for names in synonyms)
    if not any(name in row for name in answers):
        raise _unusable(
            "a row has an instruction and no answer",
            where,
            expected="'output' or 'response'",
            found=", ".join(map(repr, list(row)[:10])),
        )
    if not output:
        return None
    if row.get("history"):
        raise _unusable("a row's 'history' is not read", where, hint="give the conversation as 'messages'")
    user = "\n\n".join(part for part in (instruction, given) if part)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
    return Conversation(
        messages=messages,
        tools=_tools(row, where),
        extras=_extras(row, where),
        num_prompt_messages=len(messages) - 1,
        where=where,
    )


def _tools(row: Row, where: str) -> list[dict[str, object]] | None:
    if decoded(row.get("functions")) not in (None, "", []):
        raise _unusable("a row holds the deprecated 'functions'", where, hint="give them as 'tools'")
    tools = decoded(row.get("tools"))
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _unusable("a row's tools are not a list of JSON schemas", where, found=type(tools).__name__)
    require_shallow(tools, where)
    return tools


def _first(row: Row, *names: str) -> object:
    """The first filled field of these, or else the first that there is."""
    there = [row[name] for name in names if row.get(name) is not None]
    return next((value for value in there if value), there[0] if there else None)


def _extras(row: Row, where: str) -> Mapping[str, object]:
    extras = decoded(row.get("chat_template_kwargs")) or {}
    if not isinstance(extras, dict):
        raise _unusable("a row's chat_template_kwargs are not an object", where, found=type(extras).__name__)
    require_shallow(extras, where)
    return extras


def _unusable(
    what: str, where: str, *, expected: object = None, found: object = None, hint: str = CORRECT
) -> UsageError:
    return UsageError(what, where=where, expected=expected, found=found, hint=hint)
