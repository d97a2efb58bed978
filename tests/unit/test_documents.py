"""What the documents say is what the files hold."""

from __future__ import annotations

import re

import pytest
from click_default_group import DefaultGroup

from compressor.cli.main import cli, invoke
from tests.performance.results import ROOT, documents_with_tables, with_tables

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_agree_with_their_json() -> None:
    for document in documents_with_tables():
        text = document.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{document.name}: python -m tests.performance.results --tables"


@pytest.mark.parametrize("line", re.findall(r"^\$ compress-export (.+)$", README, re.MULTILINE))
def test_console_examples_run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(line.split()) == 0
    assert capsys.readouterr().out


def test_every_example_names_known_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Examples that need a model are parsed up to their options."""
    lines = re.findall(r"^    compress-export (\w+) (.+)$", README, re.MULTILINE)
    checked = 0
    for name, rest in lines:
        command = cli.commands.get(name)
        if command is None:
            continue
        if isinstance(command, DefaultGroup):
            command = command.commands.get(rest.split()[0], command.commands[command.default_cmd_name])
        known = {option for parameter in command.params for option in parameter.opts}
        used = {word for word in rest.split() if word.startswith("-")}
        assert used <= known, f"{name}: {used - known}"
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("command", [[], ["run"], ["bench"]])
def test_examples_in_help_keep_their_lines(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*command, "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert sum(line.startswith("compress-export ") for line in lines) >= 2
    assert not any("\\b" in line for line in lines)


def test_help_and_readme_list_the_same_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--help"]) == 0
    shown = capsys.readouterr().out
    for code in ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "130"):
        assert re.search(rf"\b{code} \w", shown)
        assert re.search(rf"\b{code} \w", README)
