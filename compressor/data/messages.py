"""The messages of a conversation in one form: who speaks, what is said, and what is called."""

from __future__ import annotations

import json
from typing import Literal, TypedDict, cast

from compressor.core.errors import UsageError


class _Said(TypedDict):
    role: str
    content: str | None


class Message(_Said, total=False):
    """A message as chat templates take it; other fields of a row's message stay in it unread.

    Its content is None beside calls, of which there is at least one, or reasoning where a row has none.
    Reasoning, the thoughts before the answer, stands under one of several names.
    """

    tool_calls: list[dict[str, object]]
    reasoning_content: object
    reasoning: object
    thinking: object


# Other names of who speaks, ShareGPT's first of all.
_ROLES = {
    **dict.fromkeys(("human", "prompter", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "bot", "model", "assistant"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
# Who calls a function in the turn whose text is the call, as JSON.
_CALLER = "function_call"
CORRECT = "correct or remove this row"
# Far deeper than calls and schemas are, and far from what JSON and templates are able to.
_MAX_LEVELS = 100
# What a table, or OpenAI's interface, may keep as JSON.
_JSON_FIELDS = ("arguments", "parameters")
REASONING_FIELDS: tuple[Literal["reasoning_content", "reasoning", "thinking"], ...] = (
    "reasoning_content",
    "reasoning",
    "thinking",
)


def read_messages(raw: object, where: str) -> list[Message]:
    """A list of messages as templates take them: `role`, `content`, and what else each holds.

    Raises:
        UsageError: for what is not a conversation, with its place.
    """
    if not isinstance(raw, list) or not raw:
        raise _no_conversation(where, f"{type(raw).__name__}")
    messages = [_message(message, where, number) for number, message in enumerate(raw)]
    require_shallow(messages, where)
    return messages


def require_shallow(value: object, where: str) -> None:
    """Refuse lists and objects within each other beyond what a chat template can be given.

    Raises:
        UsageError: naming the place.
    """
    level = [value]
    for _ in range(_MAX_LEVELS):
        level = [inner for item in level for inner in _inner(item)]
        if not level:
            return
    raise UsageError(
        "a conversation's JSON is nested too deeply",
        where=where,
        expected=f"at most {_MAX_LEVELS} levels",
        hint=CORRECT,
    )


def _inner(value: object) -> list[object]:
    if isinstance(value, dict):
        return [decoded(inner) if name in _JSON_FIELDS else inner for name, inner in value.items()]
    return value if isinstance(value, list) else []


def _message(raw: object, where: str, number: int) -> Message:
    """A message as templates take it: ShareGPT's names translated, content parts joined, nulls left out."""
    if not isinstance(raw, dict):
        raise _no_conversation(where, f"message {number} is a {type(raw).__name__}")
    message: dict[str, object] = {key: value for key, value in raw.items() if value is not None}
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message, where, number)
    role = message.get("role")
    if not isinstance(role, str):
        raise _no_conversation(where, f"message {number} has no role")
    role = _known(role)
    if role == _CALLER:
        role, message = "assistant", _with_calls(message, where, number)
    message["role"] = _ROLES.get(role, role)
    if "function_call" in message:
        raise UsageError(
            "a message holds the deprecated 'function_call'", where=where, hint="give it as 'tool_calls'"
        )
    calls = _calls(message.get("tool_calls"), where, number)
    if calls:
        message["tool_calls"] = calls
    else:
        message.pop("tool_calls", None)
    content = message.get("content")
    if content is None and not (calls or any(name in message for name in REASONING_FIELDS)):
        raise _no_conversation(where, f"message {number} has no content")
    message["content"] = None if content is None else _content(content, where, number)
    return cast(Message, message)


def _known(role: str) -> str:
    """A known role without capitals; another as it is, because a template may know it."""
    small = role.lower()
    return small if small in _ROLES or small == _CALLER else role


def _from_sharegpt(message: dict[str, object], where: str, number: int) -> dict[str, object]:
    given, value = message["from"], message.get("value")
    speaker = _known(given) if isinstance(given, str) else given
    if speaker not in (*_ROLES, _CALLER):
        raise UsageError(
            "a conversation's speaker is not known",
            where=where,
            expected=", ".join((*_ROLES, _CALLER)),
            found=f"message {number}: {speaker!r}",
            hint="rename the speaker to one of these",
        )
    rest = {key: item for key, item in message.items() if key not in ("from", "value")}
    return {"role": speaker, "content": value, **rest}


def _with_calls(message: dict[str, object], where: str, number: int) -> dict[str, object]:
    """A turn whose text is a call, or a list of them, as the assistant's with `tool_calls`."""
    value = decoded(message.get("content"))
    calls = [_with_arguments(call) for call in (value if isinstance(value, list) else [value])]
    if not calls or not all(
        isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls
    ):
        raise UsageError(
            "a function_call turn does not hold a function call as JSON",
            where=where,
            expected='{"name": ..., "arguments": {...}}',
            found=f"message {number}: {str(message.get('content'))[:80]}",
            hint=CORRECT,
        )
    rest = {key: item for key, item in message.items() if key != "content"}
    return {**rest, "tool_calls": [{"type": "function", "function": call} for call in calls]}


def _calls(raw: object, where: str, number: int) -> list[object]:
    """A message's calls, also where a table keeps them as JSON."""
    calls = [] if raw is None else decoded(raw)
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise _no_conversation(where, f"the tool_calls of message {number} are not a list of objects")
    return [_with_arguments(call) for call in calls]


def _with_arguments(call: object) -> object:
    """A call whose arguments are called `parameters`, as Llama 3 writes them, under their usual name."""
    if not isinstance(call, dict):
        return call
    if isinstance(function := call.get("function"), dict):
        return {**call, "function": _with_arguments(function)}
    if call.get("arguments") is not None or call.get("parameters") is None:
        return call
    names = {"parameters": "arguments"}
    return {names.get(name, name): value for name, value in call.items() if name != "arguments"}


def _content(content: object, where: str, number: int) -> str:
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
                hint="remove rows with images, audio or files",
            )
        parts.append(text)
    return "".join(parts)


def decoded(value: object) -> object:
    """A list or an object, also where a table keeps it as JSON; other strings as they are."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def says_something(message: Message) -> bool:
    """Whether a message holds a content, calls or reasoning."""
    return bool(message["content"]) or any(name in message for name in ("tool_calls", *REASONING_FIELDS))


def is_response(message: Message, *, where: str) -> bool:
    """Whether a message is the assistant's, and no `weight` or `train` of its own says not to train on it.

    Raises:
        UsageError: for a weight between 0 and 1, or beyond.
    """
    if message["role"] != "assistant":
        return False
    for name in ("weight", "train"):
        given = message.get(name, True)
        if not isinstance(given, bool | int | float) or given not in (0, 1):
            raise UsageError(
                f"a message's {name!r} is neither 0 nor 1",
                where=where or None,
                expected="a response that counts, or one that does not",
                found=given,
                hint="--loss-on all, which counts every token",
            )
        if not given:
            return False
    return True


def _no_conversation(where: str, found: str) -> UsageError:
    return UsageError(
        "a row's messages are not a conversation",
        where=where,
        expected='[{"role": "user", "content": "..."}, ...]',
        found=found,
        hint=CORRECT,
    )
