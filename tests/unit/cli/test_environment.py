"""Environment variables: one for every option, their place between options and a file, and misspelt ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
import yaml

from compressor.cli.bench import run as bench_run
from compressor.cli.compare import compare
from compressor.cli.environment import give_variables, variable_of
from compressor.cli.from_recipe import RecipeOption
from compressor.cli.main import COMMANDS, invoke
from compressor.cli.run import run
from compressor.core.lazy import resolve
from tests.performance.kept import ROOT

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
PLAN = ("plan", "smollm2-135m", "--target", "60%")
RUN_FLAGS = {option.dotted: option.flag for option in run.params if isinstance(option, RecipeOption)}


def config_of(capsys: Capture, *words: str) -> tuple[dict[str, object], dict[str, str]]:
    """A command's recipe and the sources of its values, as it prints them."""
    assert invoke([*words, "--print-config", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    return shown["recipe"], shown["sources"]


@pytest.mark.parametrize("name", [*(name for name in COMMANDS if name != "bench"), "bench run", "compare"])
def test_every_option_has_one_variable(name: str) -> None:
    """Named after it; a field of the recipe has the same one in every command."""
    command = {"bench run": bench_run, "compare": compare}.get(name) or resolve(COMMANDS[name][0])
    give_variables(command)
    found = []
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        flag = max(option.opts, key=len)
        variable = option.variable if isinstance(option, RecipeOption) else option.envvar
        flag = RUN_FLAGS[option.dotted] if isinstance(option, RecipeOption) else flag
        assert variable == "COMPRESS_EXPORT_" + flag[2:].replace("-", "_").upper()
        assert re.fullmatch(r"[A-Z0-9_]+", str(variable))
        found.append(variable)
    assert len(set(found)) == len(found)


def test_an_option_goes_before_a_variable_and_a_variable_before_a_file(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    file = tmp_path / "recipe.yaml"
    distill = {"tokens": "1m", "context_length": 1024, "save_steps": 7}
    file.write_text(yaml.safe_dump({"distill": distill, "quantize": {"fp8": True}}))
    monkeypatch.setenv("COMPRESS_EXPORT_TOKENS", "2m")
    monkeypatch.setenv("COMPRESS_EXPORT_CONTEXT_LENGTH", "2048")
    monkeypatch.setenv("COMPRESS_EXPORT_FP8", "off")
    recipe, sources = config_of(capsys, *PLAN, "--config", str(file), "--tokens", "3m")
    section = recipe["distill"]
    assert isinstance(section, dict)
    found = {name: (section[name], sources[f"distill.{name}"]) for name in (*distill, "batch_size")}
    assert found == {
        "tokens": (3_000_000, "option --tokens"),
        "context_length": (2048, "environment COMPRESS_EXPORT_CONTEXT_LENGTH"),
        "save_steps": (7, f"file {file}"),
        "batch_size": (None, "default"),
    }
    assert (recipe["quantize"], sources["quantize.fp8"]) == (
        {"fp8": False, "fp8_kv_cache": False},
        "environment COMPRESS_EXPORT_FP8",
    )
    assert sources["model"] == "argument MODEL"


def test_another_way_to_say_the_same_is_replaced_layer_by_layer(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    file = tmp_path / "recipe.yaml"
    shape = {"shape": {"num_hidden_layers": 20}}
    file.write_text(yaml.safe_dump({"model": "smollm2-135m", "prune": shape}))
    monkeypatch.setenv("COMPRESS_EXPORT_TARGET", "60%")
    recipe, _ = config_of(capsys, "plan", "--config", str(file))
    assert (recipe["target"], recipe["prune"]["shape"]) == ("60%", None)  # type: ignore[index]
    recipe, sources = config_of(capsys, "plan", "--config", str(file), "--shape", "num_hidden_layers=20")
    assert (recipe["target"], sources["target"]) == (None, "option --shape")


def test_one_value_of_a_preset_is_replaced_and_the_rest_stays(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("bench: {preset: published}\n")
    recipe, sources = config_of(capsys, *PLAN, "--config", str(file))
    bench = recipe["bench"]
    assert isinstance(bench, dict)
    assert (bench["batch_sizes"], bench["largest_batch"]) == ([1, 8, 32, 64], True)
    assert len(bench["isl_osl"]) == 11
    assert sources["bench.isl_osl"] == sources["bench.batch_sizes"] == "preset published, file"

    monkeypatch.setenv("COMPRESS_EXPORT_ISL_OSL", "128/128")
    recipe, sources = config_of(capsys, *PLAN, "--config", str(file))
    bench = recipe["bench"]
    assert isinstance(bench, dict)
    assert (bench["preset"], bench["isl_osl"], bench["batch_sizes"]) == (None, [[128, 128]], [1, 8, 32, 64])
    assert sources["bench.isl_osl"] == "environment COMPRESS_EXPORT_ISL_OSL"
    assert sources["bench.batch_sizes"] == "preset published"
    assert invoke([*PLAN, "--preset", "quick", "--batch-size", "4"]) == 2
    assert "--preset, --batch-size" in capsys.readouterr().err


def test_a_file_with_a_preset_and_another_grid_is_refused_and_an_option_replaces_it(
    tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("bench: {preset: published, isl_osl: [[7, 7]]}\n")
    assert invoke([*PLAN, "--config", str(file)]) == 2
    assert "preset published sets isl_osl" in capsys.readouterr().err
    file.write_text("bench: {isl_osl: [[7, 7]], batch_sizes: '4:5'}\n")
    recipe, sources = config_of(capsys, *PLAN, "--config", str(file), "--preset", "quick")
    bench = recipe["bench"]
    assert isinstance(bench, dict)
    assert (bench["isl_osl"], bench["batch_sizes"], bench["batch_pairs"]) == ([[128, 128]], [1, 8], [])
    assert sources["bench.isl_osl"] == "preset quick, option --preset"


def test_engines_of_a_variable_stand_on_lines_of_their_own(monkeypatch: Patch) -> None:
    give_variables(bench_run)
    monkeypatch.setenv("COMPRESS_EXPORT_ENGINE", "my first: engine\n\nsecond\n")
    words = ["one", "two", "--runtime", "tensorrt-llm"]
    assert bench_run.make_context("bench", words).params["engines"] == (
        Path("my first: engine"),
        Path("second"),
    )


def test_an_option_that_may_be_repeated_takes_one_entry_a_line(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_DOMAIN", "web=my own.txt@2\n\ncode=code.jsonl\n")
    recipe, _ = config_of(capsys, *PLAN)
    domains = recipe["distill"]["domains"]  # type: ignore[index]
    assert [(one["name"], one["data"], one["weight"]) for one in domains] == [
        ("web", "my own.txt", 2.0),
        ("code", "code.jsonl", 1.0),
    ]


def test_a_command_calls_a_field_shorter_and_its_variable_stays(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_EVAL_SIZE", "5")
    recipe, sources = config_of(capsys, "evaluate", "smollm2-135m", "-o", "out")
    assert recipe["evaluate"]["size"] == 5  # type: ignore[index]
    _, sources = config_of(capsys, "evaluate", "smollm2-135m", "-o", "out", "--size", "6")
    assert sources["evaluate.size"] == "option --size"


def test_options_that_are_in_no_recipe_have_variables_too(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_JSON", "1")
    monkeypatch.setenv("COMPRESS_EXPORT_NUM_GPUS", "4")
    assert invoke([*PLAN]) == 0
    assert json.loads(capsys.readouterr().out)["hours"]["hardware"].startswith("4 x")
    monkeypatch.setenv("COMPRESS_EXPORT_NUM_GPUS", "many")
    assert invoke([*PLAN]) == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("COMPRESS_EXPORT_TRAINDATA", "did you mean COMPRESS_EXPORT_TRAIN_DATA"),
        ("COMPRESS_EXPORT_NUM_GPU", "did you mean COMPRESS_EXPORT_NUM_GPUS"),
        ("COMPRESS_EXPORT_XYZZY", "unset COMPRESS_EXPORT_XYZZY"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(
    name: str, hint: str, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setenv(name, "1")
    assert invoke([*PLAN]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert hint in said


def test_every_other_variable_that_the_sources_name_is_accepted(monkeypatch: Patch) -> None:
    packages = (ROOT / name for name in ("compressor", "exporters", "bench"))
    text = "".join(path.read_text(encoding="utf-8") for package in packages for path in package.rglob("*.py"))
    named = set(re.findall(r'"(COMPRESS_EXPORT_[A-Z_]+[A-Z])"', text))
    assert "COMPRESS_EXPORT_CONTAINER_DIGEST" in named
    for name in named:
        monkeypatch.setenv(name, "sha256:1")
    assert invoke([*PLAN]) == 0


def test_a_bad_value_names_its_variable(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_TOKENS", "many")
    assert invoke([*PLAN]) == 2
    assert "COMPRESS_EXPORT_TOKENS cannot have this value" in capsys.readouterr().err


def test_an_empty_variable_sets_nothing(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_TOKENS", " ")
    assert config_of(capsys, *PLAN)[1]["distill.tokens"] == "default"


def test_names() -> None:
    assert variable_of("--isl-osl") == "COMPRESS_EXPORT_ISL_OSL"
