"""The bounded renderer against `tokenizer.apply_chat_template`, and hostile templates."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from typing import Any

import pytest

from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.data import template
from compressor.data.template import Job, render_jobs
from tests.tiny_models import make_tokenizer
from tests.unit.data.texts import with_template

CHAT = [
    {"role": "system", "content": 'Be <brief> & "kind" — 三つ 🙂'},
    {"role": "user", "content": "  one river  ", "name": "a"},
    {"role": "assistant", "content": "stone\n", "weight": 1.5},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {"type": "object"}}}
]
EACH = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m['content'] }}\n{% endfor %}",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content|trim }}{{ eos_token }}{% endfor %}",
    "prompt": EACH + "{% if add_generation_prompt %}<a>{% endif %}",
    "tojson": "{{ messages|tojson }}{{ tools|tojson(indent=2) if tools }}"
    "{{ messages[0]|tojson(sort_keys=true) }}",
    "date": "{{ strftime_now('%Y') }}" + EACH,
    "date where there is one": "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '1 Jan 1970' %}"
    "{% endif %}{% endif %}Today: {{ date_string }}" + EACH,
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "white space": "{% for m in messages %}\n    {%- if m.name is defined %}\n  {{ m.name }}\n    {% endif %}"
    "\n{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "extras": "{{ 'yes' if enable_thinking is defined and enable_thinking else 'no' }}",
    "generation": "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_is_transformers_own(name: str, prompts: bool) -> None:
    tokenizer = with_template(TEMPLATES[name])
    for tools in (None, TOOLS):
        for extras in ({}, {"enable_thinking": True}):
            theirs = tokenizer.apply_chat_template(
                CHAT,
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompts,
                strftime_now=datetime(2024, 7, 26).strftime,  # noqa: DTZ001 - the day of every rendering
                **extras,
            )
            job = Job(messages=CHAT, tools=tools, extras=extras, prompts=prompts)
            assert render_jobs([job], tokenizer)[0].text == theirs


def test_the_day_is_the_same_on_every_day_and_a_row_may_say_another() -> None:
    """Else a run that is continued tomorrow would tokenise other text."""
    tokenizer = with_template(TEMPLATES["date where there is one"] + TEMPLATES["generation"])
    jobs = [
        Job(messages=CHAT, extras=extras, tracks=tracks)
        for extras in ({}, {"date_string": "2 Feb 2025"})
        for tracks in (False, True)
    ]
    found = [each.text.partition("Be <brief>")[0] for each in render_jobs(jobs, tokenizer)]

    assert found == ["Today: 26 Jul 2024"] * 2 + ["Today: 2 Feb 2025"] * 2


def test_spans_of_generation_blocks_are_transformers_own() -> None:
    tokenizer = with_template(TEMPLATES["generation"])
    (ours,) = render_jobs([Job(messages=CHAT * 2, tracks=True)], tokenizer)

    assert [ours.text[start:end] for start, end in ours.spans] == ["stone\n<|end|>"] * 2


def test_a_template_for_tools_is_taken_where_there_are_tools() -> None:
    tokenizer = with_template({"default": "default", "tool_use": "with tools"})
    found = render_jobs([Job(messages=CHAT), Job(messages=CHAT, tools=TOOLS)], tokenizer)

    assert [each.text for each in found] == ["default", "with tools"]
    tokenizer.chat_template = {"a": "x", "b": "y"}
    with pytest.raises(UsageError, match="several chat templates"):
        render_jobs([Job(messages=CHAT)], tokenizer)


HOSTILE = {
    "a loop without measure": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "nested loops over strings": "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% for c in 'x' * 9999 %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a power": "{{ 2 ** (10 ** 10) }}",
    "a long string": "{{ 'a' * 10 ** 10 }}",
    "a string that doubles": "{% set ns = namespace(s='aa') %}{% for a in range(99) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "a long list": "{{ ([messages] * 10 ** 9)|length }}",
    "output without end": "{% for a in range(9999) %}{{ 'a' * 10000 }}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "padding": "{{ '%999999999s' % 'a' }}{{ '%999999999s' % 'a' }}{{ 'a'.center(999999999) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_with_one_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 2.0)
    tokenizer = with_template(HOSTILE[name])
    started = time.monotonic()
    with pytest.raises((VerificationError, UsageError), match="chat template") as caught:
        render_jobs([Job(messages=CHAT, where="x.jsonl:5")], tokenizer)

    assert "x.jsonl:5" in str(caught.value.where)
    assert time.monotonic() - started < 60  # the time limit, and on a busy machine a new process
    # The next template is rendered as if nothing had been.
    assert render_jobs([Job(messages=CHAT)], with_template("fine"))[0].text == "fine"


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
    ],
)
def test_the_sandbox_is_transformers_own(text: str) -> None:
    with pytest.raises(UsageError, match="refuses"):
        render_jobs([Job(messages=CHAT)], with_template(text))


@pytest.mark.parametrize(
    "text", ["{{ 'a' ", "{% for %}", "{{ none + 1 }}", "{{ undefined_name.field }}", "{% generation %}"]
)
def test_broken_templates(text: str) -> None:
    with pytest.raises(UsageError, match="refuses a conversation") as caught:
        render_jobs([Job(messages=CHAT), Job(messages=CHAT)], with_template(text))
    assert "system, user, assistant" in str(caught.value.found)


def test_the_failing_conversation_of_several_is_named() -> None:
    tokenizer = with_template(
        "{% if messages|length == 1 %}{{ raise_exception('too short') }}{% endif %}fine"
    )
    jobs = [Job(messages=chat, where=f"x:{number}") for number, chat in enumerate((CHAT, CHAT[:1], CHAT), 1)]
    with pytest.raises(UsageError, match="too short") as caught:
        render_jobs(jobs, tokenizer)
    assert caught.value.where == "x:2"


def test_a_process_that_was_killed_is_an_error_and_the_next_one_works() -> None:
    tokenizer = with_template("fine")
    render_jobs([Job(messages=CHAT)], tokenizer)
    process = template._process()._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(VerificationError, match="chat template"):
        render_jobs([Job(messages=CHAT)], tokenizer)
    assert render_jobs([Job(messages=CHAT)], tokenizer)[0].text == "fine"


def test_a_tokenizer_with_a_rendering_of_its_own() -> None:
    class Own(type(make_tokenizer())):  # type: ignore[misc]
        def apply_chat_template(self, *_arguments: Any, **_keywords: Any) -> str:
            return "something else"

    tokenizer = make_tokenizer()
    tokenizer.__class__ = Own
    with pytest.raises(UnsupportedError, match="code of its own"):
        render_jobs([Job(messages=CHAT)], tokenizer)
