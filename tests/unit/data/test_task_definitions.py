"""Definitions of tasks that would run code, however they say it; PyYAML itself says what they say."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
import yaml
from jinja2.sandbox import SecurityError

from compressor.core.errors import UnsupportedError, UsageError
from compressor.data import lm_eval_tasks
from compressor.data.task_definitions import refuse_code

PLAIN = """\
task: own
dataset_path: json
doc_to_text: "{{question}}"
dataset_kwargs: {trust_remote_code: false}
metric_list: [{metric: acc, hf_evaluate: false}]
"""
CALLS = {
    "plainly": "process_docs: !function os.system",
    "escaped": "process_docs: !%66unction os.system",
    "verbatim": "process_docs: !<!function> os.system",
    "in two parts": "process_docs: !e!tion os.system",
    "as a key": "? !function os.system\n: 1",
    "deep": "a: [{b: [!function os.system]}]",
}


def calls_of(content: bytes) -> list[str]:
    """What lm-eval's loader would import and call."""
    found: list[str] = []

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda _, node: found.append(node.value))
    yaml.load(content, Loader)  # noqa: S506 - a safe loader
    return found


def definition(call: str) -> str:
    head = "%TAG !e! !func\n---\n" if "!e!" in call else ""
    return f"{head}{PLAIN}{call}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_found_however_it_is_written(name: str, encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(definition(CALLS[name]).encode(encoding))
    assert calls_of(file.read_bytes()) == ["os.system"]
    with pytest.raises(UnsupportedError, match="run Python code") as refused:
        refuse_code([file], hint="read it")
    assert refused.value.where == str(file)


def test_what_is_included_is_read_too(tmp_path: Path) -> None:
    file, base, other = tmp_path / "own.yaml", tmp_path / "base", tmp_path / "other.txt"
    file.write_text(f"{PLAIN}include: [base]\n")
    base.write_text("include: other.txt\n")
    other.write_text("num_fewshot: 2\ninclude: own.yaml\n")
    refuse_code([file], hint="read it")
    other.write_text("process_docs: !function os.system\n")
    with pytest.raises(UnsupportedError, match=r"other\.txt"):
        refuse_code([file], hint="read it")
    other.unlink()
    with pytest.raises(UsageError, match=r"other\.txt"):
        refuse_code([file], hint="read it")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("metric_list: [{metric: ./mine}]", "metric"),
        ("metric_list: [{metric: someone/theirs}]", "metric"),
        ("metric_list: [{metric: mine, hf_evaluate: true}]", "hf_evaluate"),
        ("metric_list: [{metric: mine, hf_evaluate: yes}]", "hf_evaluate"),
        ("dataset_kwargs: {trust_remote_code: true}", "trust_remote_code"),
        ("b: &b {metric: ../mine}\nmetric_list: [*b]", "metric"),
        ("dataset_path: pandas", "pandas"),
        ("dataset_path: ../rows.py", "rows.py"),
        ("x: !!python/name:os.system ", "python"),
        ("x: !!python/object/apply:os.system [ls]", "python"),
        ("x: !other os.system", "other"),
    ],
)
def test_code_outside_of_a_definition_is_found(line: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yml"
    file.write_text(f"task: own\n{line}\n")
    with pytest.raises(UnsupportedError, match="run Python code") as refused:
        refuse_code([file], hint="read it")
    assert named in str(refused.value.found)


def test_a_data_set_on_this_machine_with_a_script_is_refused(tmp_path: Path) -> None:
    """Elsewhere than the definition; `datasets` before version 4 runs `rows/rows.py` unasked."""
    file, data = tmp_path / "own.yaml", tmp_path / "rows"
    data.mkdir()
    file.write_text(f"task: own\ndataset_path: {data}\n")
    refuse_code([file], hint="read it")
    (data / "rows.py").write_text("")
    with pytest.raises(UnsupportedError, match="run Python code") as refused:
        refuse_code([file], hint="read it")
    assert "dataset_path" in str(refused.value.found)


@pytest.mark.parametrize("name", ["steps.py", "steps.pyc", "steps.so"])
def test_code_beside_a_definition_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnsupportedError, match="run Python code"):
        refuse_code([tmp_path / name], hint="read it")


@pytest.mark.parametrize(
    "content",
    [b"[" * 20_000, b"a: b: c", b"\xff\xfe\x00", b"a: " + b"x" * (1 << 20), b"%TAG ! x", b"include: 'a\\0b'"],
    ids=["deep", "no YAML", "no text", "large", "no document", "no name"],
)
def test_a_definition_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="definition of a task cannot be read"):
        refuse_code([file], hint="read it")


def test_plain_definitions_pass(tmp_path: Path) -> None:
    file, empty = tmp_path / "own.yaml", tmp_path / "empty.yaml"
    file.write_text(f"{PLAIN}a: &a [1, 2.5, yes, null, 2026-01-01]\nb: [*a, *a]\nc: !!str 3\n")
    empty.write_text("")
    refuse_code([file, empty, tmp_path / "rows.jsonl"], hint="read it")


def test_a_template_of_a_task_reaches_only_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for lm-eval's module, with the environment that it fills templates in with."""
    stand_in = ModuleType("lm_eval")
    stand_in.utils = ModuleType("lm_eval.utils")  # type: ignore[attr-defined]
    plain: Any = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701 - as lm-eval makes it
    plain.filters["twice"] = lambda text: text * 2
    stand_in.utils.env = plain
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", stand_in)
    escape = "{{ cycler.__init__.__globals__.os.getcwd() }}"
    assert plain.from_string(escape).render() == str(Path.cwd())
    lm_eval_tasks._confine_templates()
    confined = stand_in.utils.env
    assert confined.from_string("{{ q | twice }} {{ q.upper() }}").render(q="a") == "aa A"
    with pytest.raises(SecurityError):
        confined.from_string(escape).render()
    with pytest.raises(jinja2.UndefinedError):
        confined.from_string("{{ absent }}").render()
    lm_eval_tasks._confine_templates()
    assert stand_in.utils.env is confined
