"""Texts to calibrate and train on, chat templates, and tasks of one's own."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.conftest import pseudo_text
from tests.fuzz.commands import called
from tests.fuzz.kind import Finished, Kind, Seed, Target, Workspace, files_of
from tests.fuzz.kinds.recipes import SNIPPETS, mutated_yaml
from tests.fuzz.mutations import MARK, TEXTS, Draw, mutated_bytes, mutated_json, mutated_text, mutated_tree
from tests.fuzz.template_guard import PROGRAM, SEEN_VARIABLE
from tests.tiny_models import make_tokenizer

_WORKER = "template_guard"
_TEMPLATE, _ROWS = "chat_template.jinja", "rows.jsonl"
_RENDERS_ALL = (
    "{{ tools | tojson }}{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{{ message.tool_calls | tojson if message.tool_calls }}\n{% endfor %}"
)
_SECONDS = 3.0  # for what takes milliseconds; the tool itself waits longer


def _chat(*contents: str) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)
    ]


def _call() -> dict[str, Any]:
    function = {"name": "measure", "arguments": '{"river": "north"}'}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def _rows() -> list[dict[str, Any]]:
    words = pseudo_text(60, 0)
    tools = [{"type": "function", "function": {"name": "measure", "parameters": {"type": "object"}}}]
    return [
        *({"text": words} for _ in range(3)),
        {"messages": _chat("one", words, "two", words)},
        {"prompt": words, "completion": words},
        {"messages": [*_chat(words), _call()], "tools": tools},
        {"conversations": [{"from": "human", "value": words}, {"from": "gpt", "value": words}]},
    ]


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def mutated_lines(draw: Draw, content: bytes) -> bytes:
    """JSON lines, some of them changed as values; or changed as a text."""
    from hypothesis import strategies as st

    if draw(st.integers(0, 2)) == 0:
        return mutated_text(draw, content)
    changed = mutated_tree(draw, [json.loads(line) for line in content.splitlines()])
    return _lines(changed if isinstance(changed, list) else [changed])


def text_seeds(scratch: Path) -> list[Seed]:
    from datasets import Dataset

    texts = [row["text"] for row in _rows()[:3]] * 3
    table = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "other": list(range(len(texts)))}), table)
    Dataset.from_dict({"text": texts}).save_to_disk(str(scratch / "saved"))
    saved = {f"text/{name}": content for name, content in files_of(scratch / "saved").items()}
    arrow = next(name for name in saved if name.endswith(".arrow"))
    csv = "text,label\n" + "".join(f'"{text.strip()}",1\n' for text in texts)
    lines = _lines(_rows())
    contents: list[tuple[str, bytes, Any]] = [
        ("text/rows.jsonl", lines, mutated_lines),
        ("text/rows.json", json.dumps(_rows()).encode(), mutated_json),
        ("text/rows.json", json.dumps({"data": _rows()}).encode(), mutated_json),
        ("text/rows.csv", csv.encode(), mutated_text),
        ("text/text.txt", pseudo_text(400, 1).encode(), mutated_text),
        ("text/rows.parquet", table.getvalue(), mutated_bytes),
        ("text/rows.jsonl.gz", gzip.compress(lines), mutated_bytes),
    ]
    seeds = [
        Seed(files={file: made}, targets=(Target(file=file, change=how),)) for file, made, how in contents
    ]
    names = ("text/state.json", "text/dataset_info.json")
    targets = (
        *(Target(file=name, change=mutated_json) for name in names),
        Target(file=arrow, change=mutated_bytes),
    )
    return [*seeds, Seed(files=saved, targets=targets)]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = _RENDERS_ALL
    return tokenizer


def read_text(workspace: Workspace, way: int) -> Iterator[Finished]:
    from compressor.core.console import Console
    from compressor.data.checks import check_texts
    from compressor.data.packing import read_windows

    directory = workspace.input / "text"
    files = list(directory.iterdir())
    spec = str(files[0] if len(files) == 1 and way % 4 else directory)
    yield called(lambda: check_texts([spec], Console()))
    yield called(lambda: read_windows(spec, "train", _tokenizer(), size=2, seq_len=16))


_ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    f"{{{{ cycler.__init__.__globals__.os.system('touch {MARK}') }}}}",
    f"{{{{ lipsum.__globals__['os'].popen('touch {MARK}').read() }}}}",
    "{{ messages.__class__.__base__.__subclasses__()[1:] }}",
    "{{ self.__init__.__globals__ }}",
    f"{{{{ strftime_now.__self__.__class__.__module__ }}}}{MARK}",
    "{{ raise_exception.__globals__ }}",
    f"{{{{ raise_exception('{MARK}') }}}}",
    "{% set x = namespace(v=messages) %}{{ x.v|attr('__class__') }}",
    "{{ ('%s'|format)('x') }}{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0.__init__.__globals__}'.format(raise_exception) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('x') }}",
    "{% extends '/etc/passwd' %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
    "{% set x = namespace(s='a') %}{% for i in range(60) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}",
    "{{ 'a' * 10**9 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% generation %}{{ messages }}{% endgeneration %}",
    "{% break %}",
    "{{ messages|tojson }}",
    "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ range(10**12)|list|length }}",
    "{{ messages|pprint }}{{ bos_token }}{{ tools }}{{ config }}{{ environ }}",
)


def template_seeds(scratch: Path) -> list[Seed]:
    chat = "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    marked = (
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{% else %}\n{{ message.content | trim }}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = _lines([{"messages": _chat("one", "the river", "two", "<b>stone</b>")}])
    make_tokenizer().save_pretrained(scratch / "tokenizer")
    beside = {**files_of(scratch / "tokenizer"), _ROWS: rows}

    def change(draw: Draw, content: bytes) -> bytes:
        return mutated_text(draw, content, (*_ESCAPES, *TEXTS))

    return [
        Seed(files={**beside, _TEMPLATE: text.encode()}, targets=(Target(file=_TEMPLATE, change=change),))
        for text in (chat, marked, chat.replace("\n", "\n{# a comment #}\n"))
    ]


def _seen(workspace: Workspace) -> Path:
    return workspace.root.with_name("seen")


def _guard_templates(workspace: Workspace) -> None:
    """Let the process that renders templates watch itself, and be waited for only shortly."""
    from compressor.data import template

    seen = _seen(workspace)
    seen.write_text("", encoding="utf-8")
    os.environ[SEEN_VARIABLE] = str(seen)
    template._PROGRAM, template.SECONDS = PROGRAM, _SECONDS


def read_template(workspace: Workspace, way: int) -> Iterator[Finished]:
    from compressor.data.template import Job, render_jobs
    from compressor.models.tokenizer import load_tokenizer

    messages = tuple(json.loads((workspace.input / _ROWS).read_text(encoding="utf-8"))["messages"])

    def render() -> None:
        tokenizer = load_tokenizer(workspace.input)
        render_jobs(
            [Job(messages=messages, where="rows.jsonl:1", prompts=way % 2 == 0, tracks=True)], tokenizer
        )

    yield called(render)


def escapes_seen(workspace: Workspace) -> Iterator[str]:
    """What the process that renders templates saw."""
    yield from _seen(workspace).read_text(encoding="utf-8").splitlines()


_TASK = {
    "task": MARK,
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1},
}
_CALLS = (
    "process_docs: !function os.system",
    "process_docs: !%66unction os.system",
    "process_docs: !<!function> os.system",
    "process_docs: !<%21function> os.system",
    "%TAG !e! !func\n---\nprocess_docs: !e!tion os.system",
    "include: other.txt",
    "include: ../outside/precious.txt",
    "include: [_base.yaml, /etc/passwd]",
    "metric_list: [{metric: ./evil.py, hf_evaluate: true}]",
)


def _other_encoding(draw: Draw, content: bytes) -> bytes:
    """The same in an encoding that YAML reads as well."""
    from hypothesis import strategies as st

    encoding = draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-16", "utf-16-be", "utf-8-sig")))
    marked = b"\xfe\xff" if encoding == "utf-16-be" else b""
    return marked + content.decode("utf-8", "replace").encode(encoding, "replace")


def mutated_task(draw: Draw, content: bytes) -> bytes:
    """The definition of a task, with calls of code hidden in it."""
    from hypothesis import strategies as st

    if draw(st.booleans()):
        changed = mutated_text(draw, content, (*_CALLS, *_CALLS, *SNIPPETS))
    else:
        changed = mutated_yaml(draw, content)
    return _other_encoding(draw, changed)


def task_seeds(scratch: Path) -> list[Seed]:
    del scratch
    question = {"question": "The river is", "choices": ["wet", "dry"], "answer": 0}
    lines = _lines([question, {**question, "answer": 1}])
    other = b"process_docs: !function os.system\n"
    task = {**_TASK, "include": "_base.yaml"}
    files = {
        "task/task.yaml": yaml.safe_dump(task).encode(),
        "task/_base.yaml": b"num_fewshot: 2\n",
        "task/other.txt": other,
        "questions.jsonl": lines,
    }
    changed = [Target(file=name, change=mutated_task) for name in ("task/task.yaml", "task/_base.yaml")]
    return [
        Seed(files=files, targets=tuple(changed)),
        Seed(files=files, targets=(Target(file="questions.jsonl", change=mutated_lines),)),
    ]


def read_tasks(workspace: Workspace, way: int) -> Iterator[Finished]:
    """The checks before tasks are measured; what passes them must call nothing when lm-eval reads it."""
    from compressor.data.depth_task import read_task
    from compressor.evaluation.harness import fingerprint_of_tasks

    directory = workspace.input / "task"
    yield called(lambda: read_task(str(workspace.input / "questions.jsonl")))
    checked = called(lambda: fingerprint_of_tasks(directory, trust_code=False))
    yield checked
    if checked.exit_code == 0:
        for file in sorted(directory.glob("*.yaml")):
            _read_as_lm_eval_does(file, set())


class CodeError(RuntimeError):
    """A definition that was let through calls code."""


def _read_as_lm_eval_does(file: Path, seen: set[Path]) -> None:
    """Read a definition with PyYAML as lm-eval does, tags, encodings and includes as it takes them."""
    if file in seen or not file.is_file():
        return
    seen.add(file)

    class Loader(yaml.FullLoader):
        pass

    def call(loader: Any, node: Any) -> None:
        raise CodeError(f"{file.name} calls {node.value!r}")

    Loader.add_constructor("!function", call)
    try:
        with file.open("rb") as stream:
            found = yaml.load(stream, Loader=Loader)  # noqa: S506 - what lm-eval reads it with
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError):
        return
    named = found.get("include", ()) if isinstance(found, dict) else ()
    for name in named if isinstance(named, list) else [named]:
        if isinstance(name, str) and "\0" not in name:
            _read_as_lm_eval_does(file.parent / name, seen)


TEXT_KINDS = (
    Kind(
        name="text",
        seeds=text_seeds,
        read=read_text,
        programs=(_WORKER,),
        prepare=_guard_templates,
        check=escapes_seen,
    ),
    Kind(
        name="template",
        seeds=template_seeds,
        read=read_template,
        programs=(_WORKER,),
        prepare=_guard_templates,
        check=escapes_seen,
    ),
    Kind(name="task", seeds=task_seeds, read=read_tasks),
)
