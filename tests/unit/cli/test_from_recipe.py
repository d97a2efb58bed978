"""Options made from the recipe: what is read, what is refused, what the help says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import click
import pytest
import yaml
from pydantic import AfterValidator

from compressor import api
from compressor.choices.row import Row
from compressor.cli.bench import run as bench_run
from compressor.cli.compare import compare
from compressor.cli.from_recipe import Call, RecipeCommand, RecipeOption, from_recipe
from compressor.cli.main import COMMANDS as PLACES
from compressor.cli.main import invoke
from compressor.cli.run import run
from compressor.cli.session import Show
from compressor.cli.stages import own_settings
from compressor.core.lazy import resolve
from compressor.models.presets import PRESETS
from compressor.recipe.option import OneOf, Section, option, section_of
from compressor.recipe.recipe import Distill, Recipe, load_recipe

Capture = pytest.CaptureFixture[str]


def called(*arguments: str, config: Path | None = None, names: tuple[str, ...] = ("distill",)) -> Call:
    """What a command is called with by these options."""
    found: list[Call] = []

    @from_recipe("target", *names, output=None)
    def command(call: Call, show: Show) -> None:
        found.append(call)

    given = ["--config", str(config)] if config else ["smollm2-135m"]
    command.main([*given, "--target", "4b", *arguments], standalone_mode=False)
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--loss", "reverse-kl"], "loss", "reverse-kl"),
        (["--top-k", "1000"], "top_k", 1000),
        (["--kl-weight", "0.5"], "kl_weight", 0.5),
        (["--hidden-state-loss", "mse"], "hidden_state_loss", "mse"),
        (["--layer-pairs", "29:13, 28:12"], "layer_pairs", ((29, 13), (28, 12))),
        (["--intra-document-masking"], "intra_document_masking", True),
        (["--sharding", "fsdp"], "sharding", "fsdp"),
        (["--report-to", "tensorboard,wandb"], "report_to", ("tensorboard", "wandb")),
        (["--report-to", "none"], "report_to", ()),
        (["--save-steps", "7"], "save_steps", 7),
        (["--tokens", "1.5b"], "tokens", 1_500_000_000),
        (["--train-batch-size", "8"], "batch_size", 8),
    ],
)
def test_one_option_sets_one_field(arguments: list[str], field: str, value: object) -> None:
    call = called(*arguments)
    assert call.recipe.distill == Distill().model_copy(update={field: value})
    assert dict(call.flags) == {"target": "--target", f"distill.{field}": arguments[0]}


def test_an_option_is_read_like_the_same_text_in_a_recipe(tmp_path: Path) -> None:
    texts = {"tokens": "100m", "layer_pairs": "29:13", "report_to": "none"}
    nested = {"generate": {"tokens": "2m"}, "correction": {"tokens": "60k"}}
    (tmp_path / "text.yaml").write_text(yaml.safe_dump({"model": "smollm2-135m", "distill": texts | nested}))
    flags = ("--tokens", "100m", "--layer-pairs", "29:13", "--report-to", "none")
    also = ("--generate-tokens", "2m", "--correction-tokens", "60k")
    read = load_recipe(tmp_path / "text.yaml", {"target": "4b"})
    assert called(*flags, *also).recipe == read
    assert (read.distill.tokens, read.distill.correction.tokens) == (100_000_000, 60_000)


def test_a_switch_can_be_turned_off(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nquantize: {fp8: true}\n")
    assert called(config=path, names=("quantize",)).recipe.quantize.fp8
    assert not called("--no-fp8", config=path, names=("quantize",)).recipe.quantize.fp8


@pytest.mark.parametrize(
    ("text", "name", "data", "weight"),
    [
        ("web=HuggingFaceFW/f:sample-10BT@0.7", "web", "HuggingFaceFW/f:sample-10BT", 0.7),
        ("code=a=b.jsonl", "code", "a=b.jsonl", 1.0),
        ("mail=me@home.txt", "mail", "me@home.txt", 1.0),
        ("mail=me@home.txt@2", "mail", "me@home.txt", 2.0),
    ],
)
def test_domains(text: str, name: str, data: str, weight: float) -> None:
    other, domain = called("--domain", "z=z", "--domain", text).recipe.distill.mixture()
    assert (other.name, domain.name, domain.data, domain.weight) == ("z", name, data, weight)


def test_one_text_replaces_the_domains_of_a_recipe_and_a_shape_its_target(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    tree = {"model": "m", "prune": {"shape": {"hidden_size": 8}}}
    path.write_text(yaml.safe_dump({**tree, "distill": {"domains": [{"name": "web", "data": "web.txt"}]}}))
    recipe = called("--train-data", "own.txt", config=path).recipe
    assert recipe.distill.mixture()[0].data == "own.txt"
    assert (recipe.target, recipe.prune.shape) == ("4b", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer-pairs", "29-13"], "'29-13' is not TEACHER:STUDENT"),
        (["--layer-pairs", "29:13,"], "'' is not TEACHER:STUDENT"),
        (["--layer-pairs", "-1:3"], "is not TEACHER:STUDENT"),
        (["--domain", "web"], "is not NAME=SOURCE"),
        (["--domain", "=web.txt"], "is not NAME=SOURCE"),
        (["--domain", "web=@2"], "is not NAME=SOURCE"),
        (["--domain", "web=a.txt@0"], "greater than 0"),
        (["--domain", "web=a.txt@nan"], "finite number"),
        (["--domain", "web=a.txt", "--domain", "web=b.txt"], "the same name"),
        (["--domain", "web=a.txt", "--train-data", "b.txt"], "given twice"),
        (["--report-to", "wanb"], "--report-to"),
        (["--report-to", "none,wandb"], "--report-to"),
        (["--top-k", "0"], "--top-k"),
        (["--kl-weight", "1.5"], "--kl-weight"),
        (["--loss", "kl"], "--loss"),
        (["--teacher-correction", "yes"], "--teacher-correction"),
        (["--dynamic-batches", "on"], "--dynamic-batches"),
        (["--sharding", "zero3"], "--sharding"),
        (["--save-steps", "0"], "--save-steps"),
        (["--generate-tokens", "many"], "'many' is not a count such as 4b"),
        (["--mfu", "0"], "--mfu"),
        (["--mfu", "1.1"], "--mfu"),
        (["--mfu", "nan"], "--mfu"),
        (["--gpu-hour-price", "inf"], "--gpu-hour-price"),
        (["--gpu-hour-price", "nan"], "--gpu-hour-price"),
        (["--gpu-hour-price", "-1"], "--gpu-hour-price"),
        (["--gpu", "b300"], "--gpu"),
    ],
)
def test_bad_values_are_usage_errors(arguments: list[str], message: str, capsys: Capture) -> None:
    assert invoke(["plan", "llama3.1-8b", "--target", "4b", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_every_field_of_the_recipe_has_one_option_of_run() -> None:
    """But for the model, which is an argument, and what another option sets."""
    options = [found for found in run.params if isinstance(found, RecipeOption)]
    without = {"model", "bench.batch_pairs", "bench.largest_batch", "bench.concurrency_pairs"}
    without |= {"bench.device", "bench.engines"}  # which follow from the machine
    assert sorted(found.dotted for found in options) == sorted(set(leaves(Recipe)) - without)
    assert len({found.flag for found in options}) == len(options)


BENCH = {"bench run": bench_run, "bench compare": compare}


def leaves(section: type[Section], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        inner = section_of(field)
        found += leaves(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize("name", [*(name for name in PLACES if name != "bench"), *BENCH])
def test_help_shows_every_option_once_with_its_real_default(name: str, capsys: Capture) -> None:
    command = resolve(PLACES[name][0]) if name in PLACES else BENCH[name]
    assert invoke([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown[shown.index("Options:") :], re.MULTILINE)
    assert "\\b" not in shown
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            flag = max(parameter.opts, key=len)
            assert parameter.help, flag
            assert rows.count(flag) == 1
    if isinstance(command, RecipeCommand):
        assert "--config" in shown
        assert shown.index("Options:") < shown.index("Every command:")
    if name == "distill":
        assert "sparse model. [default: 2]" in " ".join(shown.split())


@pytest.mark.parametrize(
    "words",
    [
        ("--shape", "hidden_size=288", "--shape", "num_hidden_layers=20"),
        ("--target", "60%", "--formats", "onnx", "--formats=huggingface"),
        ("--target", "60%", "--isl-osl", "64/32", "--isl-osl", "128/16"),
    ],
)
def test_an_option_of_a_list_is_given_once(words: tuple[str, ...], capsys: Capture) -> None:
    assert invoke(["plan", "smollm2-135m", *words]) == 2
    assert "given more than once" in capsys.readouterr().err
    capsys.readouterr()
    assert invoke(["plan", "smollm2-135m", "--target", "80%", "--target", "60%", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "60%"
    domains = ("--domain", "a=a.txt", "--domain", "b=b.txt")
    assert invoke(["plan", "smollm2-135m", "--target", "60%", *domains]) == 0


@pytest.mark.parametrize(
    ("word", "meant"), [("plann", "plan"), ("quanti", "quantize"), ("evaluat", "evaluate")]
)
def test_a_misspelt_command_is_no_model(
    word: str, meant: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke([word, "smollm2-135m", "--target", "60%"]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    Path(word).mkdir()  # a model of this name is one
    assert invoke([word, "--target", "60%"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("alias", PRESETS)
def test_no_alias_is_taken_for_a_command(alias: str, capsys: Capture) -> None:
    invoke([alias, "--target", "0"])
    assert "there is no command" not in capsys.readouterr().err


def test_commands_without_a_model_say_so(capsys: Capture) -> None:
    assert invoke(["prune", "--target", "4b", "-o", "out"]) == 2
    assert "--config recipe.yaml" in capsys.readouterr().err


def test_an_entry_added_to_a_table_is_accepted_and_shown() -> None:
    table = {"one": Row(name="one", help="The first.", code="")}

    class Toy(Section):
        way: Annotated[str, AfterValidator(OneOf(table))] = option("one", "How it is done.")

    shown = RecipeOption("toy.way", Toy.model_fields["way"], flag="--way", heading="Options")
    table["two"] = Row(name="two", help="The second.", code="")
    assert shown.rows(click.Context(click.Command("toy"))) == [
        ("--way [one|two]", "How it is done.  [default: one]"),
        ("  one", "The first."),
        ("  two", "The second."),
    ]
    assert Toy(way="two").way == "two"
    with pytest.raises(ValueError, match="'three' is none of one, two"):
        Toy(way="three")


def test_options_go_before_a_recipes_correction() -> None:
    correction = {"tokens": 1000, "learning_rate": 2e-5, "warmup_steps": 120}
    settings = Distill.model_validate({"tokens": 64, "warmup_steps": 3, "correction": correction})
    assert own_settings(settings, frozenset()) == settings
    given = frozenset({"distill.tokens", "distill.warmup_steps", "distill.learning_rate"})
    own = own_settings(settings, given).correction
    assert (own.tokens, own.warmup_steps, own.learning_rate) == (64, 3, None)


COMMANDS = {
    "prune": ("prune", "--target", "50%"),
    "generate": ("generate", "--tokens", "9k"),
    "correct_teacher": ("correct-teacher", "--tokens", "5k"),
    "cache_logits": ("cache-logits", "--tokens", "5k"),
    "distill": ("distill", "--teacher", "t", "--tokens", "5k"),
    "sparsify": ("sparsify",),
    "quantize": ("quantize", "--fp8"),
    "export": ("export", "--format", "onnx"),
    "evaluate": ("evaluate", "m", "--data", "t"),
    "bench": ("bench", "m", "n"),
}


@pytest.mark.parametrize("stage", COMMANDS)
def test_every_command_follows_the_recipes_environment(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    found: list[api.Execution] = []

    def stand_in(*arguments: object, execution: api.Execution, **_: object) -> SimpleNamespace:
        found.append(execution)
        return SimpleNamespace(
            **dict.fromkeys(("path", "stage", "fingerprint"), tmp_path),
            lineage=(),
            num_parameters=1,
            details=dict.fromkeys(("tokens", "samples", "windows", "top_k", "bytes"), 1),
        )

    monkeypatch.setattr(api, stage, stand_in)
    environment = {"seed": 7, "device": "cpu", "dtype": "float32", "trust_remote_code": True}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": str(tiny_checkpoint), **environment}), encoding="utf-8")
    # What people read of results that a stand-in does not have.
    for text in ("compressor.cli.render.evaluation_text", "bench.report.markdown.render_markdown"):
        monkeypatch.setattr(text, lambda _: "")
    monkeypatch.setattr("bench.report.write.results_of_stage", lambda *_: None)
    words = [*COMMANDS[stage], "--config", str(recipe), "--json", "-o", str(tmp_path / "out")]
    assert invoke(words) == 0
    (execution,) = found
    assert execution.environment.model_dump(exclude={"tokenizer"}) == environment
