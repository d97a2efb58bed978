from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.core.errors import UsageError
from compressor.data.packing import read_windows, starts_path, write_tokens
from compressor.data.rows import Conversation
from compressor.data.tokenise import tokenise_all
from tests.unit.data.texts import chat, read_row, render, texts_of, with_template, write_rows

CHATS = [chat(user="one river", assistant="stone"), chat(user="winter")]


def write_chats(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"messages": CHATS, "source": ["a", "b"]}), path)
        return path
    return write_rows(path, *({"messages": messages, "n": 1} for messages in CHATS))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_conversations_are_rendered_by_the_chat_template(
    tmp_path: Path, tiny_tokenizer: Any, suffix: str
) -> None:
    chats = write_chats(tmp_path / f"chats{suffix}")
    path = tmp_path / "tokens"
    write_tokens(str(chats), "all", tiny_tokenizer, path, max_tokens=10**6)
    tokens = np.fromfile(path, "<u4").tolist()
    end = tiny_tokenizer.eos_token
    rendered = f"user: one river\nassistant: stone\n{end}user: winter\n{end}"

    assert tiny_tokenizer.decode(tokens) == rendered
    assert len(np.fromfile(starts_path(path), "<u8")) == 2


def test_special_tokens_of_the_template_are_tokens_and_the_end_comes_once(tmp_path: Path) -> None:
    tokenizer = with_template("{% for m in messages %}<|begin|>{{ m['content'] }}<|end|>{% endfor %}")
    chats = write_chats(tmp_path / "chats.jsonl")
    path = tmp_path / "tokens"
    write_tokens(str(chats), "train", tokenizer, path, max_tokens=10**6)
    tokens = np.fromfile(path, "<u4").tolist()

    assert [tokens[0], tokens[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokens.count(tokenizer.eos_token_id) == 2  # one per message, none added


def test_a_text_is_taken_before_a_conversation(tmp_path: Path) -> None:
    assert read_row(tmp_path, {"text": "plain", "messages": CHATS[0]}) == "plain"


def test_a_tokenizer_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = with_template(None)

    with pytest.raises(UsageError, match="no chat template"):
        read_windows(str(write_chats(tmp_path / "x.jsonl")), "all", tokenizer, size=1, seq_len=8)


def test_a_conversation_the_template_refuses() -> None:
    tokenizer = with_template("{{ raise_exception('roles must alternate') }}")

    with pytest.raises(UsageError, match="roles must alternate") as caught:
        render(Conversation(messages=CHATS[0], where="x.jsonl:7"), tokenizer)
    assert "user, assistant" in str(caught.value)
    assert caught.value.where == "x.jsonl:7"


TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
WITH_TOOLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "21 C"},
    {"role": "assistant", "content": "It is 21 C.", "reasoning_content": "so easy"},
]
FULL_TEMPLATE = (
    "{% if tools %}TOOLS {{ tools|tojson }}\n{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function|tojson }}</call>{% endfor %}<|end|>\n{% endfor %}"
)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_all_of_a_conversation_reaches_the_template(tmp_path: Path, suffix: str) -> None:
    tokenizer = with_template(FULL_TEMPLATE)
    path = tmp_path / f"x{suffix}"
    messages: Any = WITH_TOOLS
    if suffix == ".parquet":  # which needs one form for all schemas, and JSON where there is none
        pq.write_table(pa.Table.from_pylist([{"messages": WITH_TOOLS, "tools": json.dumps(TOOLS)}]), path)
        # Older versions of pyarrow write the fields of a struct in the order of their names.
        messages = without_absent(pq.read_table(path).to_pylist()[0]["messages"])
    else:
        write_rows(path, {"messages": WITH_TOOLS, "tools": TOOLS})
    (document,) = texts_of(path)

    assert render(document, tokenizer) == tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)


WITH_CALLS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
)
# How templates write a call's arguments, and whether they are right with the JSON that a row has.
WAYS = {
    "{{ c.function.name }} {{ c.function.arguments | tojson }}": False,
    "{{ c.function | tojson }}": False,
    "{{ c.function.name }} {% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}": False,
    "{{ c.function.name + ' ' + c.function.arguments }}": True,
    "{{ c.function.name }} {{ c.function.arguments }}": True,
    "{{ c.function.name }} {% if c.function.arguments is string %}{{ c.function.arguments }}"
    "{% else %}{{ c.function.arguments | tojson }}{% endif %}": True,
}


@pytest.mark.parametrize("given", [{"city": "Paris"}, {}, {"city": "Zürich", "days": [1, 2]}])
@pytest.mark.parametrize("way", WAYS)
def test_arguments_as_json_reach_a_template_in_the_form_that_it_takes(
    way: str, given: dict[str, Any]
) -> None:
    """Against transformers, given at once what this template takes."""
    tokenizer = with_template(WITH_CALLS.replace("CALL", way))

    def talk(arguments: Any) -> list[dict[str, Any]]:
        function = {"name": "get_weather", "arguments": arguments}
        call = {"type": "function", "function": function}
        return [WITH_TOOLS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]

    as_json = json.dumps(given, ensure_ascii=False)
    takes = talk(as_json if WAYS[way] else given)
    document = Conversation(messages=talk(as_json))
    assert render(document, tokenizer) == tokenizer.apply_chat_template(takes, tokenize=False)


# Published templates as far as they write a turn with calls. Some take a null as its content, others an empty
# text; one takes a call's arguments as a string, the others an object.
CALL_AS_JSON = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
STYLES = {
    "Llama 3.1": (
        "{{ bos_token }}{% for m in messages %}{% if not (m.role == 'tool' or 'tool_calls' in m) %}"
        "<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% elif 'tool_calls' in m %}"
        "{% if not m.tool_calls|length == 1 %}{{ raise_exception('one call at once') }}{% endif %}"
        "{% set c = m.tool_calls[0] %}<|assistant|>" + CALL_AS_JSON + "<|end|>"
        "{% else %}<|ipython|>{% if m.content is mapping or m.content is iterable %}"
        "{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}<|end|>{% endif %}{% endfor %}"
    ),
    "Qwen2.5": (
        "{% for m in messages %}<|begin|>{{ m.role }}{% if m.content %}\n{{ m.content }}{% endif %}"
        "{% for c in m.tool_calls %}\n<tool_call>\n" + CALL_AS_JSON + "\n</tool_call>{% endfor %}<|end|>\n"
        "{% endfor %}"
    ),
    "Hermes": (
        "{% for m in messages %}{% if m.role != 'assistant' or m.tool_calls is not defined %}"
        "{{ '<|begin|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% else %}<|begin|>assistant"
        "{% for c in m.tool_calls %}\n<tool_call>\n" + CALL_AS_JSON + "\n</tool_call>{% endfor %}<|end|>\n"
        "{% endif %}{% endfor %}"
    ),
    "Mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.tool_calls is defined and m.tool_calls is not none %}[TOOL_CALLS] ["
        "{% for c in m.tool_calls %}{{ c.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]"
        "<|end|>{% elif m.role == 'assistant' %} {{ m.content | trim }}<|end|>"
        "{% else %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]{% endif %}{% endfor %}"
    ),
    "DeepSeek": (
        "{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}"
        "{% elif m['content'] is none %}{% for c in m['tool_calls'] %}"
        "{{ '<call>' + c['function']['name'] + '\n' + c['function']['arguments'] + '</call>' }}"
        "{% endfor %}<|end|>{% else %}<|assistant|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    ),
    "a sum of strings": (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% for c in m.tool_calls or [] %}"
        + CALL_AS_JSON
        + "{% endfor %}<|end|>{% endfor %}"
    ),
    "contents as they are": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
        + CALL_AS_JSON
        + "{% endfor %}<|end|>{% endfor %}"
    ),
    "parts or a string": (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% for c in m.tool_calls or [] %}"
        + CALL_AS_JSON
        + "{% endfor %}<|end|>{% endfor %}"
    ),
}
TAKES_NULL = ("Llama 3.1", "Qwen2.5", "Hermes", "Mistral", "DeepSeek")
TAKES_JSON = ("DeepSeek",)
NOTHING: list[dict[str, Any]] = [{}, {"content": None}]
GIVEN = [(name, as_json) for name in STYLES for as_json in (False, True) if as_json or name not in TAKES_JSON]


@pytest.mark.parametrize("question", ["Weather in Paris?", "None of it, is None right?"])
@pytest.mark.parametrize("content", NOTHING, ids=["no content", "null"])
@pytest.mark.parametrize(("style", "as_json"), GIVEN)
def test_a_call_without_content_reaches_the_template_in_the_form_that_it_takes(
    tmp_path: Path, style: str, content: dict[str, Any], question: str, as_json: bool
) -> None:
    """Against transformers, given at once what this template takes."""
    tokenizer = with_template(STYLES[style])
    arguments = {"city": "Paris"}

    def talk(content: dict[str, Any], *, as_json: bool) -> list[dict[str, Any]]:
        function = {"name": "get_weather", "arguments": json.dumps(arguments) if as_json else arguments}
        call = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
        return [
            {"role": "user", "content": question},
            {**call, **content},
            {"role": "tool", "content": "21 C"},
            {"role": "assistant", "content": "It is 21 C."},
        ]

    document = read_row(tmp_path, {"messages": talk(content, as_json=as_json)})
    taken = talk({"content": None if style in TAKES_NULL else ""}, as_json=style in TAKES_JSON)
    theirs = tokenizer.apply_chat_template(taken, tokenize=False)

    assert render(document, tokenizer) == theirs
    assert "get_weather" in theirs


def test_an_empty_content_stays_an_empty_one() -> None:
    tokenizer = with_template(
        "{% for m in messages %}{{ 'null' if m.content is none else m.content | tojson }}{{ m.tool_calls }}"
        "{% endfor %}"
    )
    for content, written in (("", '""'), (None, "null")):
        messages = [{"role": "assistant", "content": content, "tool_calls": [CALL]}]
        assert render(Conversation(messages=messages), tokenizer).startswith(written)


@pytest.mark.parametrize("form", ["one", "object", "several", "role"])
def test_calls_of_sharegpt_are_the_assistants(tmp_path: Path, form: str) -> None:
    tokenizer = with_template(FULL_TEMPLATE)
    calls = [CALL["function"]] * (2 if form == "several" else 1)
    value: Any = {"object": calls[0], "several": json.dumps(calls)}.get(form, json.dumps(calls[0]))
    turns = [
        ("human", "Weather in Paris?"),
        ("function_call", value),
        ("observation", "21 C"),
        ("gpt", "It is 21 C."),
    ]
    names = ("role", "content") if form == "role" else ("from", "value")
    said = [dict(zip(names, turn, strict=True)) for turn in turns]
    document = read_row(tmp_path, {"conversations": said, "tools": json.dumps(TOOLS)})
    expected = chat(user="Weather in Paris?", tool="21 C", assistant="It is 21 C.")
    made = [{"type": "function", "function": call} for call in calls]
    expected.insert(1, {"role": "assistant", "content": "", "tool_calls": made})

    assert render(document, tokenizer) == tokenizer.apply_chat_template(expected, tools=TOOLS, tokenize=False)


def without_absent(value: Any) -> Any:
    """What a table's column of one form for all fills in, left out again."""
    if isinstance(value, dict):
        return {key: without_absent(inner) for key, inner in value.items() if inner is not None}
    return [without_absent(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", ["nested", "flat", "text", "null beside", "json"])
def test_parameters_of_a_call_are_its_arguments(tmp_path: Path, form: str) -> None:
    """As Llama 3 writes calls, and rows made from its answers do."""
    function: dict[str, Any] = {"name": "get_weather", "parameters": {"city": "Paris"}}
    if form == "null beside":
        function["arguments"] = None
    call = function if form in ("flat", "text") else {"type": "function", "function": function}
    calls: Any = json.dumps([call]) if form == "json" else [call]
    answer: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
    if form == "text":
        answer = {"from": "function_call", "value": json.dumps(function)}
    document = read_row(tmp_path, {"messages": [CHATS[0][0], answer]})
    (found,) = document.messages[1]["tool_calls"]

    assert found.get("function", found) == {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert document.messages[1]["role"] == "assistant"


@pytest.mark.parametrize("tail", ["", "\n", "\n\n", " "])
def test_one_end_token_per_document_whatever_stands_behind_the_templates_own(tail: str) -> None:
    for written, text in (("<|end|>" + tail, "<|end|>" + tail), (tail, tail + "<|end|>")):
        tokenizer = with_template("{% for m in messages %}{{ m.content }}" + written + "{% endfor %}")
        (found,) = tokenise_all("x", [Conversation(messages=chat(user="one river"))], tokenizer)
        assert tokenizer.decode(found.ids) == "one river" + text


@pytest.mark.parametrize(
    "messages",
    ["hello", [{"role": "user"}], [{"role": "user", "content": 3}], ["hello"], [{"content": "a"}]],
)
def test_messages_that_are_no_conversation(tmp_path: Path, messages: Any) -> None:
    with pytest.raises(UsageError, match="not a conversation") as caught:
        read_row(tmp_path, {"messages": messages})
    assert str(caught.value.where).endswith("row.jsonl:1")
