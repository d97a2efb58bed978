"""What the documents say is what the files hold."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
import yaml
from click_default_group import DefaultGroup

from compressor.api.stages import refuse_other_stages
from compressor.choices.formats import FORMATS
from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.choices.losses import LOSSES
from compressor.choices.runtimes import RUNTIMES
from compressor.choices.samplers import SAMPLERS
from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.cli.bench_options import SERVING, STATIC
from compressor.cli.from_recipe import RecipeOption, section_options
from compressor.cli.main import COMMANDS, invoke
from compressor.cli.stages import distill
from compressor.core.errors import (
    CLOSED_OUTPUT_EXIT_CODE,
    INTERRUPTED_EXIT_CODE,
    CompressExportError,
    UsageError,
)
from compressor.core.lazy import resolve
from compressor.recipe.recipe import load_recipe
from tests.guides import DOCS, Command, commands_of
from tests.guides import GUIDES as PAGES
from tests.performance.kept import ROOT
from tests.performance.tables import documents_with_tables, with_tables

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
GUIDES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TROUBLESHOOTING = GUIDES["troubleshooting.md"]
LAUNCH = sorted((ROOT / "docs" / "launch").iterdir())

MEASUREMENTS = sorted((ROOT / "tests" / "performance").glob("*results.py"))


def test_tables_agree_with_their_json() -> None:
    for document in documents_with_tables():
        text = document.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{document.name}: python -m tests.performance.results --tables"


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ compress-export (.+)$", "\n".join([README, *GUIDES.values()]), re.MULTILINE)
)
def test_console_examples_run(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert invoke(line.split()) == 0
    assert capsys.readouterr().out


def test_every_example_names_known_options() -> None:
    """Examples that need a model are parsed up to their options."""
    text = "\n".join([README, *GUIDES.values()]).replace("\\\n", " ")
    lines = re.findall(r"^    compress-export ([\w.-]+) (.+)$", text, re.MULTILINE)
    known = [names_known_options(*found) or names_known_options("run", " ".join(found)) for found in lines]
    assert len(known) >= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_guide_is_run_or_says_why_not(page: Path) -> None:
    """Those of tests/integration/test_guides.py run; the others are parsed up to their options."""
    found = commands_of(page)
    for command in found:
        if not command.words:
            assert command.not_run, f"{command.line}: no test runs this program"
        name, rest = command.words[0] if command.words else "", " ".join(command.words[1:])
        assert (
            not command.words
            or names_known_options(name, rest)
            or names_known_options("run", " ".join(command.words))
        )
    words = page.read_text(encoding="utf-8").count("\n    compress-export ")
    assert sum(bool(command.words) for command in found) >= words


def test_benchmarks_have_the_options_of_their_runtime() -> None:
    """Also in commands that no test runs; a command without the option has the runtime of this machine."""
    flags = {option.dotted: option.flag for option in section_options("bench")}
    found = [
        (RUNTIMES[name], command)
        for page in PAGES
        for command in commands_of(page)
        for name in re.findall(r"--runtime ([\w-]+)", command.line)
        if name in RUNTIMES
    ]
    assert len(found) > 3
    for runtime, command in found:
        foreign = {flags[name] for name in (STATIC if runtime.serves else SERVING)}
        assert not foreign & set(command.words), command.line


def test_guides_are_read_as_they_are_meant(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: takes a whole day -->\n\n    compress-export plan A \\\n      --target 4b  # why\n\n"
        "Text.\n\n    compress-export plan B\n    make demo\n\n```\n    compress-export fenced\n```\n"
    )
    assert commands_of(page) == [
        Command(guide="page.md", line="compress-export plan A --target 4b", not_run="takes a whole day"),
        Command(guide="page.md", line="compress-export plan B", not_run=None),
        Command(guide="page.md", line="make demo", not_run=None),
    ]


def test_the_site_has_every_page_once() -> None:
    """Both ways: a page without a place is lost, a place without a page fails only when the site is built."""
    site = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8"))

    def leaves(node: object) -> list[str]:
        inner = node.values() if isinstance(node, dict) else node
        return [node] if isinstance(node, str) else [leaf for part in inner for leaf in leaves(part)]  # type: ignore[attr-defined]

    listed = leaves(site["nav"])
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert len(listed) == len(set(listed))
    start = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page for page in listed if page != "index.md" and f"({page})" not in start] == []


def site_problems(site: Path) -> list[str]:
    """What the check of `make site` finds; it is a script beside the site's configuration."""
    script = runpy.run_path(str(DOCS / "site" / "check_links.py"))
    found: list[str] = script["problems"](site)
    return found


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<a href="other.html#there">x</a><a href="#here">x</a><h1 id="here">x</h1>', []),
        ('<a href="folder/">x</a><img src="folder/index.html">', []),
        ('<a href="https://example.com/gone">x</a><a href="mailto:a@example.com">x</a>', []),
        ('<a href="gone.html">x</a>', ["page.html: gone.html leads nowhere"]),
        ('<a href="other.html#gone">x</a>', ["page.html: other.html#gone names no heading"]),
        ('<a href="#gone">x</a>', ["page.html: #gone names no heading"]),
        ('<script src="https://example.com/a.js"></script>', ["page.html: loads https://example.com/a.js"]),
        ('<link rel="stylesheet" href="//example.com/a.css">', ["page.html: loads //example.com/a.css"]),
        ('<img src="gone.png">', ["page.html: gone.png leads nowhere"]),
    ],
)
def test_the_check_of_links_finds_what_is_wrong(tmp_path: Path, html: str, found: list[str]) -> None:
    (tmp_path / "page.html").write_text(html)
    (tmp_path / "other.html").write_text('<h2 id="there">x</h2>')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("")
    assert site_problems(tmp_path) == found


def test_no_page_links_out_of_the_site() -> None:
    """To a file of the repository above docs/, which the built site does not hold."""
    for page in PAGES:
        assert "](../" not in page.read_text(encoding="utf-8"), page.name


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("export.md", FORMATS),
        ("runtimes.md", RUNTIMES),
        ("sparsity.md", SPARSITY_METHODS),
        ("generate.md", SAMPLERS),
        ("pruning.md", IMPORTANCE_METHODS),
        ("training.md", LOSSES),
        ("index.md", dict.fromkeys(COMMANDS)),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_can_be_chosen_is_in_its_guide(page: str, names: dict[str, object]) -> None:
    assert [name for name in names if not re.search(rf"[`| -]{re.escape(name)}[`|]", GUIDES[page])] == []


def test_formats_are_described_in_their_own_words() -> None:
    for name, row in FORMATS.items():
        precisions = " or ".join(f"`{precision}`" for precision in row.precisions)
        line = f"| `{name}` | `{row.option}`, {precisions} | {row.help.rstrip('.')} |"
        assert line in GUIDES["export.md"], line


def test_the_example_of_costs_is_what_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(r"^\$ compress-export (.+)$", GUIDES["cost.md"], re.MULTILINE)
    assert invoke([*line.split(), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    training, text = plan["training"], GUIDES["cost.md"]
    rows = {row["num_gpus"]: row for row in training["by_num_gpus"]}
    assert f"{rows[1]['gpu_hours']:,.0f}      money = ${rows[1]['cost_usd']:,.0f}" in text
    assert f"{rows[256]['gpu_hours'] / rows[1]['gpu_hours'] - 1:.0%}".replace("%", " %") in text
    assert f"{training['phases'][0]['flops_per_token']:.2e}".replace("e+", "e") in text
    scratch = training["from_scratch"]
    assert f"{scratch['tokens_ratio']:.0f} times the tokens" in text
    assert f"{scratch['gpu_hours_ratio']:.0f} times\nthe GPU-hours" in text
    for model in ("teacher", "student"):
        assert f"{plan[model]['num_parameters'] / 1e9:.2f} billion" in text


@pytest.mark.parametrize("name", [*GUIDES, "README.md"])
def test_links_between_documents_lead_somewhere(name: str) -> None:
    """To files, and to headings inside them."""
    directory, text = (ROOT, README) if name == "README.md" else (ROOT / "docs", GUIDES[name])
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        file = directory / target if target else directory / name
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", found).lower().replace(" ", "-") for found in headings]


@pytest.mark.parametrize("message", re.findall(r'^\| "(.+?)" \|', TROUBLESHOOTING, re.MULTILINE))
def test_messages_to_look_up_are_the_tools_own(message: str) -> None:
    """Each is part of a message in the source, up to what is filled in."""
    assert any(message in source for source in sources())


def test_every_exit_code_is_looked_up_and_has_its_section() -> None:
    own = {CompressExportError, *CompressExportError.__subclasses__()}
    codes = {0, INTERRUPTED_EXIT_CODE, CLOSED_OUTPUT_EXIT_CODE, *(kind.exit_code for kind in own)}
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", TROUBLESHOOTING, re.MULTILINE)]
    assert listed == sorted(codes)
    headings = " ".join(re.findall(r"^## (.+)$", TROUBLESHOOTING, re.MULTILINE))
    assert codes - {0} <= {int(code) for code in re.findall(r"\d+", headings)}


@cache
def sources() -> list[str]:
    """Every module, with strings that go over several lines joined."""
    files = [
        path for package in ("compressor", "exporters", "bench") for path in (ROOT / package).rglob("*.py")
    ]
    return [re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in files]


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
