"""What the fields of a row mean, and which rows are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.data.rows import Completion, Conversation
from compressor.data.sources import survey
from tests.unit.data.texts import (
    chat,
    read_row,
    refused,
    render,
    share_gpt,
    texts_of,
    with_template,
    write_rows,
)

CHAT_ROW: dict[str, Any] = {"messages": chat(user="q", assistant="a")}
ANSWER = {"completion": chat(assistant="a")}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "", "content": "x"}, "x"),
        ({"text": None, "content": "x"}, "x"),
        ({"text": "a", "content": "x"}, "a"),
        ({"text": "", "prompt": "p ", "completion": "c"}, ("p ", "c")),
        ({"text": "", "messages": chat(user="hi")}, ["user hi"]),
        (share_gpt(human="q", gpt="a"), ["user q", "assistant a"]),
        ({"system": "be", **share_gpt(human="q")}, ["system be", "user q"]),
        ({"conversations": chat(user="q")}, ["user q"]),
        ({"instruction": "do", "input": "this", "output": "done"}, ["user do\n\nthis", "assistant done"]),
        ({"instruction": "do", "input": "", "output": "done"}, ["user do", "assistant done"]),
        ({"messages": chat(user=[{"type": "text", "text": part} for part in "ab"])}, ["user ab"]),
        ({"prompt": chat(user="q"), **ANSWER}, ["user q", "assistant a"]),
        ({"system": "be", "prompt": chat(user="q"), **ANSWER}, ["system be", "user q", "assistant a"]),
        (
            {"system_prompt": "be", "prompt": chat(system="be", user="q"), **ANSWER},
            ["system be", "user q", "assistant a"],
        ),
        ({"system": "be", "messages": chat(system="be")}, ["system be"]),
        ({"prompt": "p ", "completion": "c", "system": "", "tools": []}, ("p ", "c")),
        ({"instruction": "do", "context": "this", "response": "done"}, ["user do\n\nthis", "assistant done"]),
        ({"prompt": "p ", "response": "c"}, ("p ", "c")),
        ({"instruction": "do", "output": ""}, None),
        ({"text": " ", "content": "x"}, "x"),
        ({"messages": chat(gpt="a")}, ["assistant a"]),
        ({"messages": chat(User="q", Assistant="a")}, ["user q", "assistant a"]),
        (share_gpt(Human="q", GPT="a"), ["user q", "assistant a"]),
        ({"messages": chat(SYSTEM="be", Critic="a")}, ["system be", "Critic a"]),
        ({"system_prompt": "be", **share_gpt(human="q")}, ["system be", "user q"]),
        ({"text": ""}, None),
        ({"messages": []}, None),
        ({"messages": chat(user="")}, None),
        ({"text": None, "content": ""}, None),
        ({"prompt": "", "completion": ""}, None),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_of_rows(tmp_path: Path, row: dict[str, Any], found: Any, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row, {**row}]), path)
    else:
        write_rows(path, row, None, row, {"text": "end"})

    def plainly(document: Any) -> Any:
        if isinstance(document, Completion):
            return document.prompt, document.completion
        if isinstance(document, Conversation):
            return [f"{message['role']} {message['content']}" for message in document.messages]
        return document

    if kind == "parquet" and found is None:
        refused(path, "empty")
        return
    expected = [found, found] if found is not None else []
    assert [plainly(document) for document in texts_of(path)] == [
        *expected,
        *(["end"] if kind == "jsonl" else []),
    ]
    assert survey(str(path)).num_empty == (0 if kind == "parquet" else 1 if found is not None else 3)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value


def row_with(deep: Any, place: str) -> dict[str, Any]:
    call = {"function": {"name": "f", "arguments": json.dumps(deep) if place == "JSON" else deep}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    user, plain = CHAT_ROW["messages"]
    return {
        "message": {"messages": [{**user, "deep": deep}, plain]},
        "arguments": {"messages": [user, answer]},
        "JSON": {"messages": [user, answer]},
        "calls as JSON": {"messages": [user, {**answer, "tool_calls": json.dumps([call])}]},
        "tools": {**CHAT_ROW, "tools": [tool]},
        "tools as JSON": {**CHAT_ROW, "tools": json.dumps([tool])},
        "extras": {**CHAT_ROW, "chat_template_kwargs": {"deep": deep}},
        "prompt": {"prompt": [{**user, "deep": deep}], "completion": [plain]},
    }[place]


@pytest.mark.parametrize(
    "place", ["message", "arguments", "JSON", "calls as JSON", "tools", "tools as JSON", "extras", "prompt"]
)
def test_conversations_without_a_bottom_name_their_line(tmp_path: Path, place: str) -> None:
    path = tmp_path / "x.jsonl"
    tokenizer = with_template("{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}")
    document = read_row(tmp_path, row_with(nested(80), place))
    theirs = tokenizer.apply_chat_template(document.messages, tools=document.tools, tokenize=False)
    if place != "JSON":  # which is given to this template as an object
        assert render(document, tokenizer) == theirs
    for levels in (100, 300, 900):
        write_rows(path, {"text": "a"}, row_with(nested(levels), place))
        assert str(refused(path, "nested too deeply").where).startswith(f"{path}:2")


@pytest.mark.parametrize("system", ["", "be"])
def test_the_prompt_is_all_but_the_completion_with_a_system_beside_it(tmp_path: Path, system: str) -> None:
    document = read_row(tmp_path, {"system": system, "prompt": chat(user="q"), **ANSWER})

    assert document.messages[document.num_prompt_messages :] == ANSWER["completion"]


@pytest.mark.parametrize(
    "row",
    [
        {"body": "a"},
        ["a"],
        "a",
        {"text": 3},
        {"messages": "hello"},
        {"messages": [{"role": "user"}]},
        {"messages": chat(user=3)},
        {"messages": chat(user=[{"type": "image", "url": "x"}])},
        {"messages": chat(user=[{"type": "text", "text": "a"}, {"type": "image_url"}])},
        {"messages": [{"role": "assistant", "function_call": {"name": "f"}, "content": ""}]},
        share_gpt(narrator="q"),
        {"conversations": [{"from": ["human"], "value": "q"}]},
        {"prompt": "p"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "completion": "c", "system": "be"},
        {"prompt": "", "completion": "c", "system_prompt": "be"},
        {"prompt": "p", "response": "c", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"prompt": "p", "completion": "c", "tools": '[{"name": "f"}]'},
        {"prompt": "p", "completion": "c", "functions": [{"name": "f"}]},
        {"system": "be", "messages": chat(system="do", user="q")},
        {"system": "be", "prompt": chat(system="do", user="q"), **ANSWER},
        {"instruction": "do", "input": "this"},
        {"messages": chat(user="a"), "system_prompt": ["be"]},
        {"messages": chat(user="a"), "functions": [{"name": "f"}]},
        {"instruction": "do", "output": "done", "history": [["a", "b"]]},
        {"messages": chat(user="a"), "tools": "weather"},
        {"conversations": [{"from": "human"}]},
        share_gpt(gpt=None),
        {"messages": chat(user=None)},
        share_gpt(function_call="look it up"),
        share_gpt(function_call='{"name": "f"}'),
        share_gpt(function_call='["f", "g"]'),
        share_gpt(function_call="[]"),
        share_gpt(function_call=""),
        {"messages": chat(function_call="look it up")},
    ],
)
def test_rows_that_are_refused_name_their_line(tmp_path: Path, row: Any) -> None:
    path = write_rows(tmp_path / "x.jsonl", {"text": "fine"}, None, row)

    assert refused(path).where == f"{path}:3"


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "broken \\ud83d here"}',
        '{"messages": [{"role": "user", "content": "\\uDC00 at the start"}]}',
        '{"prompt": "p", "completion": "at the end \\ud83d"}',
    ],
)
def test_lone_surrogates_become_the_replacement_character(tmp_path: Path, row: str) -> None:
    path = tmp_path / "x.jsonl"
    whole = '{"text": "a whole pair \\ud83d\\ude00"}'
    path.write_text(f"{whole}\n{row}\n")
    first, second = texts_of(path)

    assert first == "a whole pair 😀"
    assert "\ufffd" in str(second)
    assert survey(str(path)).num_replaced == 1
