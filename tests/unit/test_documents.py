"""What the documents say is what the files hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click_default_group import DefaultGroup

from compressor.api.stages import refuse_other_stages
from compressor.cli.from_recipe import RecipeOption
from compressor.cli.main import COMMANDS, invoke
from compressor.cli.stages import distill
from compressor.core.errors import UsageError
from compressor.core.lazy import resolve
from compressor.recipe.recipe import load_recipe
from tests.performance.results import ROOT, documents_with_tables, with_tables

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
LAUNCH = sorted((ROOT / "docs" / "launch").iterdir())

MEASUREMENTS = sorted((ROOT / "tests" / "performance").glob("*results.py"))


def test_tables_agree_with_their_json() -> None:
    for document in documents_with_tables():
        text = document.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{document.name}: python -m tests.performance.results --tables"


@pytest.mark.parametrize("line", re.findall(r"^\$ compress-export (.+)$", README + TRAINING, re.MULTILINE))
def test_console_examples_run(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert invoke(line.split()) == 0
    assert capsys.readouterr().out


def test_every_example_names_known_options() -> None:
    """Examples that need a model are parsed up to their options."""
    lines = re.findall(r"^    compress-export ([\w-]+) (.+)$", README + TRAINING, re.MULTILINE)
    assert sum(names_known_options(name, rest) for name, rest in lines) >= 10


@pytest.mark.parametrize("script", LAUNCH, ids=lambda path: path.name)
def test_launch_scripts_name_known_options(script: Path) -> None:
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = r"^(?:compress-export|.* -m compressor\.cli\.main) ([\w-]+) (.+)$"
    assert sum(names_known_options(*found) for found in re.findall(commands, text, re.MULTILINE)) >= 1
    assert [path for path in re.findall(r"recipes/[\w.-]+\.yaml", text) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("script", MEASUREMENTS, ids=lambda path: path.name)
def test_long_measurements_name_known_options(script: Path) -> None:
    """They take hours, so that a name that no longer exists would be noticed late."""
    commands = [resolve(place) for place, _ in COMMANDS.values()]
    commands += [
        inner for group in commands if isinstance(group, DefaultGroup) for inner in group.commands.values()
    ]
    known = {name for command in commands for name in options_of(command)}
    used = set(re.findall(r'"(--[a-z][a-z0-9-]*)"', script.read_text(encoding="utf-8")))
    assert used
    assert used - known - {"--tables", "--seeds"} == set()


def test_distillations_of_a_recipe_ask_for_no_stage_but_their_own() -> None:
    """What distill refuses at once: a script that names the recipe of a whole run must have done the rest."""
    texts = [TRAINING, *(script.read_text(encoding="utf-8") for script in LAUNCH)]
    commands = [
        found.split()
        for text in texts
        for found in re.findall(
            r"-m compressor\.cli\.main distill (.+)$", text.replace("\\\n", " "), re.MULTILINE
        )
    ]
    assert len(commands) == len(texts)
    for words in commands:
        recipe = re.sub(r'"\$RECIPE"', "recipes/llama3.1-minitron-4b-width.yaml", " ".join(words)).split()
        flags = distill.make_context("distill", recipe).params
        own = {
            option.dotted: value
            for option in distill.params
            if isinstance(option, RecipeOption) and (value := flags[str(option.name)]) not in (None, ())
        }
        settings = load_recipe(ROOT / flags["config"], own).distill
        refuse_other_stages(settings)


def test_the_recipes_correction_is_refused_where_it_is_not_switched_off() -> None:
    settings = load_recipe(ROOT / "recipes" / "llama3.1-minitron-4b-width.yaml", {}).distill
    with pytest.raises(UsageError, match="correct-teacher does"):
        refuse_other_stages(settings)


@pytest.mark.parametrize("script", LAUNCH, ids=lambda path: path.name)
def test_launch_scripts_are_bash(script: Path) -> None:
    for program, *options in (("bash", "-n"), ("shellcheck",)):
        found = shutil.which(program)
        if found is not None:
            subprocess.run([found, *options, str(script)], check=True)


def test_the_file_that_torchrun_starts_is_the_command_line() -> None:
    words = [sys.executable, "-m", "compressor.cli.main", "distill", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Model to distill from" in done.stdout


def options_of(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def names_known_options(name: str, rest: str) -> bool:
    """Whether `name` is a command; its options must be known."""
    if name not in COMMANDS:
        return False
    command = resolve(COMMANDS[name][0])
    if isinstance(command, DefaultGroup):
        first = next(iter(rest.split()), "")
        command = command.commands.get(first, command.commands[command.default_cmd_name])
    known = options_of(command)
    used = {word for word in rest.split() if word.startswith("-")}
    assert used <= known, f"{name}: {used - known}"
    return True


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
