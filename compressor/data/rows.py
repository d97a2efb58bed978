"""What a row of a table holds: a text, a prompt with its completion, or a conversation.

Recognised, in this order, is the first of these fields that is filled: `text`, `content`, `messages`,
`conversations` (ShareGPT), `prompt` with `completion`, `instruction` with `input` and `output`; `response`,
`context` and `system_prompt` are other names of `completion` or `output`, `input` and `system`. An empty
field never goes before a filled one; a row whose fields are all empty, or that has no answer, is no document.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from compressor.errors import UsageError

TEXT_FIELDS = ("text", "content")
CONVERSATION_FIELDS = ("messages", "conversations", "conversation")
# Everything that is read of a row; columns of other names are not even decoded.
ROW_FIELDS = (
    *TEXT_FIELDS,
    *CONVERSATION_FIELDS,
    *("prompt", "completion", "response", "instruction", "input", "context", "output", "history"),
    *("system", "system_prompt", "tools", "functions", "chat_template_kwargs"),
)
# Other names of who speaks, ShareGPT's first of all.
_ROLES = {
    "human": "user",
    "prompter": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Message = dict[str, Any]


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
        messages: With `role` and what else each holds; contents are strings.
        tools: JSON schemas of the functions that may be called.
        extras: Further arguments of the template (`chat_template_kwargs`).
        num_prompt_messages: So many messages are the prompt; what the assistant says in them is no response.
        where: Its place, for messages.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    num_prompt_messages: int = 0
    where: str = ""


# A row's text is a plain string.
Document = str | TextPiece | Completion | Conversation


def document_of(row: Any, *, where: str) -> Document | None:
    """What a row holds; None for a row whose fields are all empty.

    Raises:
        UsageError: for a row without a known field, or with one that is not what its name says.
    """
    if not isinstance(row, dict) or not any(name in row for name in _LEADING):
        raise UsageError(
            "a row has no 'text' string and no 'messages'",
            where=where,
            expected='{"text": ...}, {"messages": [{"role": ..., "content": ...}]}, or one of '
            + ", ".join(map(repr, _LEADING)),
            found=", ".join(map(repr, list(row)[:10])) if isinstance(row, dict) else type(row).__name__,
        )
    blank = None
    for name in TEXT_FIELDS:
        text = row.get(name)
        if text is not None and not isinstance(text, str):
            raise UsageError(f"a row's {name!r} is no string", where=where, found=type(text).__name__)
        if text and text.strip():
            return text
        blank = blank or text
    for name in CONVERSATION_FIELDS:
        if (messages := _decoded(row.get(name))) not in (None, [], ""):
            return _conversation(row, messages, where)
    if row.get("prompt") or row.get("completion"):
        return _completion(row, where)
    if row.get("instruction") or row.get("output"):
        return _instruction(row, where)
    return blank or None


_LEADING = (*TEXT_FIELDS, *CONVERSATION_FIELDS, "prompt", "completion", "instruction", "output")


def replace_surrogates(value: Any) -> tuple[Any, int]:
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


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table, its columns without the nulls that stand for fields which other rows have."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _conversation(row: dict[str, Any], raw: Any, where: str) -> Conversation | None:
    messages = _messages(raw, where)
    system = _first(row, "system", "system_prompt")
    if not isinstance(system or "", str):
        raise UsageError("a row's 'system' is no string", where=where, found=type(system).__name__)
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    if not any(_says_something(message) for message in messages):
        return None
    return Conversation(messages=messages, tools=_tools(row, where), extras=_extras(row, where), where=where)


def _completion(row: dict[str, Any], where: str) -> Document:
    """Two strings that follow each other, or two lists of messages."""
    prompt, completion = row.get("prompt"), _first(row, "completion", "response")
    if isinstance(prompt or "", str) and isinstance(completion, str):
        return Completion(prompt=prompt or "", completion=completion, where=where)
    if isinstance(prompt, list) and isinstance(completion, list) and prompt and completion:
        first = _messages(prompt, where)
        return Conversation(
            messages=[*first, *_messages(completion, where)],
            tools=_tools(row, where),
            extras=_extras(row, where),
            num_prompt_messages=len(first),
            where=where,
        )
    raise UsageError(
        "a row's prompt and completion are neither two strings nor two conversations",
        where=where,
        found=f"{type(prompt).__name__} and {type(completion).__name__}",
    )


def _instruction(row: dict[str, Any], where: str) -> Conversation | None:
    """Alpaca's fields, or Dolly's, as a conversation: instruction and input are the user's turn."""
    synonyms = (("instruction",), ("input", "context"), ("output", "response"), ("system", "system_prompt"))
    parts = [_first(row, *names) or "" for names in synonyms]
    for names, part in zip(synonyms, parts, strict=True):
        if not isinstance(part, str):
            raise UsageError(f"a row's {names[0]!r} is no string", where=where, found=type(part).__name__)
    if not any(name in row for name in synonyms[2]):
        raise UsageError(
            "a row has an instruction and no answer",
            where=where,
            expected="'output' or 'response'",
            found=", ".join(map(repr, list(row)[:10])),
        )
    if not parts[2]:
        return None
    if row.get("history"):
        raise UsageError("a row's 'history' is not read", where=where, expected="'messages'")
    instruction, given, output, system = parts
    user = "\n\n".join(part for part in (instruction, given) if part)
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
    return Conversation(
        messages=messages,
        tools=_tools(row, where),
        extras=_extras(row, where),
        num_prompt_messages=len(messages) - 1,
        where=where,
    )


def _messages(raw: Any, where: str) -> list[Message]:
    if not isinstance(raw, list) or not raw:
        raise _no_conversation(where, f"{type(raw).__name__}")
    return [_message(message, where, number) for number, message in enumerate(raw)]


def _message(raw: Any, where: str, number: int) -> Message:
    """A message as templates take it: ShareGPT's names translated, content parts joined, nulls left out."""
    if not isinstance(raw, dict):
        raise _no_conversation(where, f"message {number} is a {type(raw).__name__}")
    message = {key: value for key, value in raw.items() if value is not None}
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message, where, number)
    if not isinstance(message.get("role"), str):
        raise _no_conversation(where, f"message {number} has no role")
    message["role"] = _ROLES.get(message["role"], message["role"])
    if "function_call" in message:
        raise UsageError(
            "a message holds the deprecated 'function_call'", where=where, expected="'tool_calls'"
        )
    calls = message.get("tool_calls")
    if isinstance(calls, str):
        message["tool_calls"] = calls = _decoded(calls)
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise _no_conversation(where, f"the tool_calls of message {number} are no list of objects")
    if calls == []:
        del message["tool_calls"]
    if "content" not in message and not (calls or any(name in message for name in REASONING_FIELDS)):
        raise _no_conversation(where, f"message {number} has no content")
    message["content"] = _content(message.get("content", ""), where, number)
    return message


def _from_sharegpt(message: Message, where: str, number: int) -> Message:
    speaker, value = message["from"], message.get("value")
    if speaker not in _ROLES:
        raise UsageError(
            "a conversation's speaker is not known",
            where=where,
            expected=", ".join(_ROLES),
            found=f"message {number}: {speaker!r}",
        )
    rest = {key: item for key, item in message.items() if key not in ("from", "value")}
    return {"role": _ROLES[speaker], "content": value, **rest}


def _content(content: Any, where: str, number: int) -> str:
    """A message's content as one string; parts of text follow each other without anything between."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _no_conversation(where, f"the content of message {number} is a {type(content).__name__}")
    parts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") != "text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UsageError(
                "a message holds more than text",
                where=where,
                expected='{"type": "text", "text": ...}',
                found=f"message {number}: a part of type {kind!r}",
            )
        parts.append(text)
    return "".join(parts)


def _tools(row: dict[str, Any], where: str) -> list[Any] | None:
    if _decoded(row.get("functions")) not in (None, "", []):
        raise UsageError("a row holds the deprecated 'functions'", where=where, expected="'tools'")
    tools = _decoded(row.get("tools"))
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UsageError("a row's tools are no list of JSON schemas", where=where, found=type(tools).__name__)
    return tools


def _first(row: dict[str, Any], *names: str) -> Any:
    """The first filled field of these, or else the first that there is."""
    there = [row[name] for name in names if row.get(name) is not None]
    return next((value for value in there if value), there[0] if there else None)


def _extras(row: dict[str, Any], where: str) -> dict[str, Any]:
    extras = _decoded(row.get("chat_template_kwargs"))
    if not isinstance(extras or {}, dict):
        raise UsageError(
            "a row's chat_template_kwargs are no object", where=where, found=type(extras).__name__
        )
    return extras or {}


def _decoded(value: Any) -> Any:
    """A list or an object, also where a table keeps it as JSON; other strings as they are."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _says_something(message: Message) -> bool:
    return bool(message["content"]) or any(name in message for name in ("tool_calls", *REASONING_FIELDS))


def _no_conversation(where: str, found: str) -> UsageError:
    return UsageError(
        "a row's messages are no conversation",
        where=where,
        expected='[{"role": "user", "content": "..."}, ...]',
        found=found,
    )
