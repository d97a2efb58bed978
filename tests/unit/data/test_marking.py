"""Parts of a conversation that a chat template leaves out are refused, by their names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compressor.core.errors import UsageError
from compressor.data.rows import Conversation
from tests.unit.data.test_conversations import CHATS, FULL_TEMPLATE, TOOLS, WITH_CALLS, WITH_TOOLS
from tests.unit.data.texts import chat, render, with_template


def left_out_of(document: Conversation, template: str) -> str:
    """What the error names for a template that leaves out a part."""
    with pytest.raises(UsageError, match="leaves out") as caught:
        render(document, with_template(template))
    assert caught.value.where == (document.where or None)
    return str(caught.value.found)


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
    document = Conversation(messages=WITH_TOOLS, tools=TOOLS, where="x.jsonl:3")
    assert named in left_out_of(document, FULL_TEMPLATE.replace(left_out, ""))


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
    template = (
        f"{{% for t in tools %}}{{% set f = {function} %}}{way}{{% endfor %}}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    )
    document = Conversation(messages=CHATS[0], tools=[tool], where="x.jsonl:3")
    if not named:
        tokenizer = with_template(template)
        theirs = tokenizer.apply_chat_template(CHATS[0], tools=[tool], tokenize=False)
        assert render(document, tokenizer) == theirs
        return
    found = left_out_of(document, template)
    assert all(name in found for name in named)


@pytest.mark.parametrize("parameters", [{"city": {"type": "string"}}, json.dumps(TOOL["parameters"])])
def test_parameters_of_other_forms(parameters: Any) -> None:
    """Without a schema around them, or as JSON."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    template = "{% for t in tools %}WAY{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    document = Conversation(messages=CHATS[0], tools=[tool])
    whole = with_template(template.replace("WAY", "{{ t | tojson }}"))

    assert render(document, whole) == whole.apply_chat_template(CHATS[0], tools=[tool], tokenize=False)
    found = left_out_of(document, template.replace("WAY", "{{ t.function.name }}"))
    assert "parameter 'city' of tool 0" in found


ARGUMENTS: list[tuple[Any, str]] = [
    ({"city": "Paris"}, "argument 'city'"),
    ({"days": 3}, "argument 'days'"),
    ({"places": [{"at": 1, "city": "Paris"}]}, "argument 'places'"),
    ({"places": [{"at": 1}, 2], "none": None}, "argument 'places'"),
    (["Paris", 2], "the arguments"),
    ("Paris, in three days", "the arguments"),
]


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(("arguments", "named"), ARGUMENTS)
def test_arguments_that_the_template_leaves_out_are_refused(
    arguments: Any, named: str, as_json: bool
) -> None:
    given = json.dumps(arguments) if as_json and not isinstance(arguments, str) else arguments
    call = {"type": "function", "function": {"name": "get_weather", "arguments": given}}
    messages = [CHATS[0][0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    whole = with_template(WITH_CALLS.replace("CALL", "{{ c.function.name }} {{ c.function.arguments }}"))

    document = Conversation(messages=messages, where="x.jsonl:3")
    assert render(document, whole) == whole.apply_chat_template(messages, tokenize=False)
    found = left_out_of(document, WITH_CALLS.replace("CALL", "{{ c.function.name }}"))
    assert f"{named} of call 0 of message 1" in found


def test_some_arguments_that_the_template_leaves_out_are_refused() -> None:
    function = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
    messages = [CHATS[0][0], {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    template = WITH_CALLS.replace("CALL", "{{ c.function.name }} {{ c.function.arguments.city }}")
    found = left_out_of(Conversation(messages=messages), template)
    assert found == "nothing of argument 'days' of call 0 of message 1"


@pytest.mark.parametrize("role", ["system", "tool", "critic"])
@pytest.mark.parametrize("content", ["x", "one", "a long sentence, said once"])
def test_messages_of_roles_that_the_template_does_not_know(role: str, content: str) -> None:
    """Short contents stand somewhere in the text all the same."""
    template = (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
        "<|{{ m.role }}|>{{ m.content|trim }}<|end|>{% endif %}{% endfor %}"
    )
    messages = [{"role": role, "content": content}, *CHATS[0], {"role": "user", "content": "one more x"}]

    assert render(Conversation(messages=CHATS[0]), with_template(template))
    assert f"of role {role!r}" in left_out_of(Conversation(messages=messages), template)


def test_thoughts_that_the_template_drops_from_earlier_contents_are_its_own_affair() -> None:
    """As Qwen3's: what stands before the end of the thoughts is shown in the last answer alone."""
    tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    )
    messages = [
        *chat(user="one river", assistant="<think>hm</think>stone"),
        *chat(user="and now", assistant="<think>well</think>water"),
    ]

    assert render(Conversation(messages=messages), tokenizer) == (
        "<|user|>one river<|end|><|assistant|>stone<|end|>"
        "<|user|>and now<|end|><|assistant|><think>well</think>water<|end|>"
    )


# As DeepSeek-R1's templates do: training would be on answers without the reasoning in the rows.
WITHOUT_THOUGHTS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
)


@pytest.mark.parametrize("thoughts", ["<think>hm</think>", "<think>\nhm\n</think>\n\n", "hm\n</think>\n"])
def test_thoughts_that_the_template_drops_from_every_answer_are_refused(thoughts: str) -> None:
    document = Conversation(messages=chat(user="one river", assistant=f"{thoughts}stone"))
    assert "the reasoning" in left_out_of(document, WITHOUT_THOUGHTS)


def test_empty_thoughts_that_the_template_drops_are_nothing_lost() -> None:
    document = Conversation(messages=chat(user="one river", assistant="<think>\n\n</think>stone"))
    assert render(document, with_template(WITHOUT_THOUGHTS)).endswith("<|assistant|>stone<|end|>")
