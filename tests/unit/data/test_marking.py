"""Parts of a conversation that a chat template leaves out are refused, by their names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compressor.core.errors import UsageError
from compressor.data.conversations import render
from compressor.data.rows import Conversation
from tests.unit.data.test_conversations import (
    CHATS,
    FULL_TEMPLATE,
    TOOLS,
    WITH_CALLS,
    WITH_TOOLS,
)
from tests.unit.data.texts import with_template


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ("{% if tools %}TOOLS {{ tools|tojson }}\n{% endif %}", "tool 0"),
        (
            "{% for c in m.tool_calls or [] %}<call>{{ c.function|tojson }}</call>{% endfor %}",
            "call 0 of message 1",
        ),
        ("{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}", "the reasoning"),
    ],
)
def test_what_the_template_leaves_out_is_refused(left_out: str, named: str) -> None:
    assert left_out in FULL_TEMPLATE
    tokenizer = with_template(FULL_TEMPLATE.replace(left_out, ""))

    with pytest.raises(UsageError, match="leaves out") as caught:
        render(Conversation(messages=WITH_TOOLS, tools=TOOLS, where="x.jsonl:3"), tokenizer)
    assert named in str(caught.value.found)
    assert caught.value.where == "x.jsonl:3"


TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Finds the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
PARTS_OF_TOOLS = {
    "{{ f.name }}": ["the description of tool 0", "parameter 'city' of tool 0", "parameter 'days' of tool 0"],
    "{{ f.name }}: {{ f.description }}": ["parameter 'city' of tool 0", "parameter 'days' of tool 0"],
    "{{ f.name }}: {{ f.description }} {{ f.parameters.required }}": ["parameter 'city' of tool 0"],
    "{{ f.name }} {{ f.parameters | tojson }}": ["the description of tool 0"],
    "{{ f.name }}: {{ f.description }} {{ f.parameters | tojson }}": [],
    "{{ f.description }}\n{{ f.name }}({% for name, schema in f.parameters.properties.items() %}"
    "{{ name }}: {{ schema.type }}{{ '' if name in f.parameters.required else '?' }},{% endfor %})": [],
}


@pytest.mark.parametrize("way", PARTS_OF_TOOLS)
@pytest.mark.parametrize("is_nested", [True, False])
def test_parts_of_tools_that_the_template_leaves_out_are_refused(way: str, is_nested: bool) -> None:
    named = PARTS_OF_TOOLS[way]
    tool = {"type": "function", "function": TOOL} if is_nested else TOOL
    function = "t.function" if is_nested else "t"
    tokenizer = with_template(
        f"{{% for t in tools %}}{{% set f = {function} %}}{way}{{% endfor %}}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    )
    chat = Conversation(messages=CHATS[0], tools=[tool], where="x.jsonl:3")
    if not named:
        theirs = tokenizer.apply_chat_template(CHATS[0], tools=[tool], tokenize=False)
        assert render(chat, tokenizer) == theirs
        return
    with pytest.raises(UsageError, match="leaves out") as caught:
        render(chat, tokenizer)
    assert all(name in str(caught.value.found) for name in named)
    assert caught.value.where == "x.jsonl:3"


@pytest.mark.parametrize("parameters", [{"city": {"type": "string"}}, json.dumps(TOOL["parameters"])])
def test_parameters_of_other_forms(parameters: Any) -> None:
    """Without a schema around them, or as JSON."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    template = "{% for t in tools %}WAY{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = Conversation(messages=CHATS[0], tools=[tool])
    whole = with_template(template.replace("WAY", "{{ t | tojson }}"))

    assert render(chat, whole) == whole.apply_chat_template(CHATS[0], tools=[tool], tokenize=False)
    with pytest.raises(UsageError, match="leaves out") as caught:
        render(chat, with_template(template.replace("WAY", "{{ t.function.name }}")))
    assert "parameter 'city' of tool 0" in str(caught.value.found)


ARGUMENTS: list[tuple[Any, str]] = [
    ({"city": "Paris"}, "argument 'city' of call 0 of message 1"),
    ({"days": 3}, "argument 'days' of call 0 of message 1"),
    ({"places": [{"at": 1, "city": "Paris"}]}, "argument 'places' of call 0 of message 1"),
    ({"places": [{"at": 1}, 2], "none": None}, "argument 'places' of call 0 of message 1"),
    (["Paris", 2], "the arguments of call 0 of message 1"),
    ("Paris, in three days", "the arguments of call 0 of message 1"),
]


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(("arguments", "named"), ARGUMENTS)
def test_arguments_that_the_template_leaves_out_are_refused(
    arguments: Any, named: str, as_json: bool
) -> None:
    given = json.dumps(arguments) if as_json and not isinstance(arguments, str) else arguments
    call = {"type": "function", "function": {"name": "get_weather", "arguments": given}}
    chat = [CHATS[0][0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    whole = with_template(WITH_CALLS.replace("CALL", "{{ c.function.name }} {{ c.function.arguments }}"))
    names = with_template(WITH_CALLS.replace("CALL", "{{ c.function.name }}"))

    document = Conversation(messages=chat, where="x.jsonl:3")
    assert render(document, whole) == whole.apply_chat_template(chat, tokenize=False)
    with pytest.raises(UsageError, match="leaves out") as caught:
        render(document, names)
    assert named in str(caught.value.found)


def test_some_arguments_that_the_template_leaves_out_are_refused() -> None:
    function = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
    chat = [CHATS[0][0], {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    tokenizer = with_template(
        WITH_CALLS.replace("CALL", "{{ c.function.name }} {{ c.function.arguments.city }}")
    )
    with pytest.raises(UsageError, match="leaves out") as caught:
        render(Conversation(messages=chat), tokenizer)
    assert caught.value.found == "nothing of argument 'days' of call 0 of message 1"


@pytest.mark.parametrize("role", ["system", "tool", "critic"])
@pytest.mark.parametrize("content", ["x", "one", "a long sentence, said once"])
def test_messages_of_roles_that_the_template_does_not_know(role: str, content: str) -> None:
    """Short contents stand somewhere in the text all the same."""
    tokenizer = with_template(
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
        "<|{{ m.role }}|>{{ m.content|trim }}<|end|>{% endif %}{% endfor %}"
    )
    chat = [{"role": role, "content": content}, *CHATS[0], {"role": "user", "content": "one more x"}]

    assert render(Conversation(messages=CHATS[0]), tokenizer)
    with pytest.raises(UsageError, match="leaves out") as caught:
        render(Conversation(messages=chat), tokenizer)
    assert f"of role {role!r}" in str(caught.value.found)


def test_thoughts_that_the_template_drops_from_earlier_contents_are_its_own_affair() -> None:
    """As Qwen3's: what stands before the end of the thoughts is shown in the last answer alone."""
    tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    )
    chat = [
        {"role": "user", "content": "one river"},
        {"role": "assistant", "content": "<think>hm</think>stone"},
        {"role": "user", "content": "and now"},
        {"role": "assistant", "content": "<think>well</think>water"},
    ]

    assert render(Conversation(messages=chat), tokenizer) == (
        "<|user|>one river<|end|><|assistant|>stone<|end|>"
        "<|user|>and now<|end|><|assistant|><think>well</think>water<|end|>"
    )


@pytest.mark.parametrize("thoughts", ["<think>hm</think>", "<think>\nhm\n</think>\n\n", "hm\n</think>\n"])
def test_thoughts_that_the_template_drops_from_every_answer_are_refused(thoughts: str) -> None:
    """As DeepSeek-R1's templates do: training would be on answers without the reasoning in the rows."""
    tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    )
    chat = [{"role": "user", "content": "one river"}, {"role": "assistant", "content": f"{thoughts}stone"}]

    with pytest.raises(UsageError, match="leaves out") as caught:
        render(Conversation(messages=chat), tokenizer)
    assert "the reasoning" in str(caught.value.found)


def test_empty_thoughts_that_the_template_drops_are_nothing_lost() -> None:
    tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    )
    chat = [
        {"role": "user", "content": "one river"},
        {"role": "assistant", "content": "<think>\n\n</think>stone"},
    ]
    assert render(Conversation(messages=chat), tokenizer).endswith("<|assistant|>stone<|end|>")
