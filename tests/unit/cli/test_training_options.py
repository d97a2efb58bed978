"""Every field of distillation from the command line: what is read, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from compressor.cli import stage_command
from compressor.cli.correct import own_flags
from compressor.cli.main import cli, invoke
from compressor.cli.options import RECIPE_FIELDS, recipe_overrides
from compressor.cli.sections import OPTIONS, SectionedCommand
from compressor.cli.training_options import DISTILLATION_FIELDS, TRAINING_FIELDS, distillation, training
from compressor.recipe.recipe import Distill, Recipe, load_recipe

Capture = pytest.CaptureFixture[str]


def parsed(*arguments: str, config: Path | None = None) -> Recipe:
    """The recipe that these flags make."""
    found: list[Recipe] = []

    @click.command()
    @training
    @distillation
    def command(**flags: Any) -> None:
        found.append(load_recipe(config, {"model": "smollm2-135m", **recipe_overrides(flags)}))

    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--loss", "reverse-kl"], "loss", "reverse-kl"),
        (["--top-k", "1000"], "top_k", 1000),
        (["--distill-kl-weight", "0.5"], "kl_weight", 0.5),
        (["--hidden-state-loss", "mse"], "hidden_state_loss", "mse"),
        (["--embedding-loss", "cosine"], "embedding_loss", "cosine"),
        (["--layer-pairs", "29:13, 28:12"], "layer_pairs", ((29, 13), (28, 12))),
        (["--intra-document-masking"], "intra_document_masking", True),
        (["--micro-batch-size", "4"], "micro_batch_size", 4),
        (["--sharding", "fsdp"], "sharding", "fsdp"),
        (["--activation-checkpointing"], "activation_checkpointing", True),
        (["--compile", "off"], "compile", "off"),
        (["--report-to", "tensorboard,wandb"], "report_to", ("tensorboard", "wandb")),
        (["--report-to", "none"], "report_to", ()),
        (["--teacher-logits", "logits"], "teacher_logits", "logits"),
        (["--save-steps", "7"], "save_steps", 7),
        (["--tokens", "1.5b"], "tokens", 1_500_000_000),
    ],
)
def test_one_flag_sets_one_field(arguments: list[str], field: str, value: Any) -> None:
    changed = parsed(*arguments).distill
    assert getattr(changed, field) == value
    assert changed == Distill().model_copy(update={field: value})


def test_flags_of_nested_sections() -> None:
    distill = parsed(
        *("--teacher-correction", "first", "--dynamic-batches", "unclipped"),
        *("--generate-tokens", "2m", "--generate-prompts", "prompts.txt"),
    ).distill

    assert (distill.correction.mode, distill.dynamic_batches.variant) == ("first", "unclipped")
    assert (distill.generate.tokens, distill.generate.prompts) == (2_000_000, "prompts.txt")


def test_both_kl_weights_are_kept_apart() -> None:
    made = recipe_overrides({"distill_kl_weight": 0.3, "kl_weight": 0.6})
    assert made == {"distill.kl_weight": 0.3, "sparsify.kl_weight": 0.6}


@pytest.mark.parametrize(
    ("text", "name", "data", "weight"),
    [
        (
            "web=HuggingFaceFW/fineweb-edu:sample-10BT@0.7",
            "web",
            "HuggingFaceFW/fineweb-edu:sample-10BT",
            0.7,
        ),
        ("code=a=b.jsonl", "code", "a=b.jsonl", 1.0),
        ("mail=me@home.txt", "mail", "me@home.txt", 1.0),
        ("mail=me@home.txt@2", "mail", "me@home.txt", 2.0),
    ],
)
def test_domains(text: str, name: str, data: str, weight: float) -> None:
    (domain,) = parsed("--domain", text).distill.mixture()
    assert (domain.name, domain.data, domain.weight) == (name, data, weight)


def test_several_domains_keep_their_order() -> None:
    domains = parsed("--domain", "b=1.txt", "--domain", "a=2.txt@3").distill.domains
    assert [domain.name for domain in domains] == ["b", "a"]


def test_one_text_replaces_the_domains_of_a_recipe(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(
        yaml.safe_dump({"distill": {"domains": [{"name": "web", "data": "web.txt"}]}}), encoding="utf-8"
    )
    assert parsed(config=config).distill.mixture()[0].data == "web.txt"
    assert parsed("--train-data", "own.txt", config=config).distill.mixture()[0].data == "own.txt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer-pairs", "29-13"], "'29-13' is not TEACHER:STUDENT"),
        (["--layer-pairs", "29:13,"], "'' is not TEACHER:STUDENT"),
        (["--layer-pairs", "-1:3"], "is not TEACHER:STUDENT"),
        (["--domain", "web"], "is not NAME=SOURCE"),
        (["--domain", "=web.txt"], "is not NAME=SOURCE"),
        (["--domain", "web=@2"], "is not NAME=SOURCE"),
        (["--domain", "web=a.txt@0"], "must be above 0"),
        (["--domain", "web=a.txt@-1"], "must be above 0"),
        (["--domain", "web=a.txt@nan"], "must be above 0"),
        (["--domain", "web=a.txt@inf"], "must be above 0"),
        (["--domain", "web=a.txt", "--domain", "web=b.txt"], "the same name"),
        (["--domain", "web=a.txt", "--train-data", "b.txt"], "given twice"),
        (["--report-to", "wanb"], "'wanb' is none of tensorboard, wandb, mlflow"),
        (["--report-to", "none,wandb"], "'none' is none of"),
        (["--top-k", "0"], "--top-k"),
        (["--distill-kl-weight", "1.5"], "distill.kl_weight"),
        (["--loss", "kl"], "--loss"),
        (["--teacher-correction", "yes"], "--teacher-correction"),
        (["--dynamic-batches", "on"], "--dynamic-batches"),
        (["--sharding", "zero3"], "--sharding"),
        (["--compile", "yes"], "--compile"),
        (["--micro-batch-size", "0"], "--micro-batch-size"),
        (["--save-steps", "0"], "--save-steps"),
        (["--generate-tokens", "many"], "--generate-tokens"),
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


def test_every_choice_of_distillation_has_a_flag_or_only_a_recipe() -> None:
    """A new field of the recipe must be named here or on the command line."""
    only_in_recipes = {
        *("dynamic_batches.interval_steps", "dynamic_batches.eval_windows"),
        *("correction.tokens", "correction.learning_rate", "correction.warmup_steps"),
        *("generate.prompt_tokens", "generate.max_new_tokens", "generate.temperature"),
        *("generate.top_p", "generate.weight"),
    }
    flagged = {
        field.removeprefix("distill.") for field in (*TRAINING_FIELDS.values(), *DISTILLATION_FIELDS.values())
    }
    assert flagged | only_in_recipes == set(leaves(Distill(), ""))
    assert flagged & only_in_recipes == set()


def leaves(section: Any, prefix: str) -> list[str]:
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        found += leaves(value, f"{name}.") if hasattr(value, "model_fields_set") else [f"{prefix}{name}"]
    return found


def test_flags_go_before_a_recipes_correction() -> None:
    correction = {"tokens": 1000, "learning_rate": 2e-5, "warmup_steps": 120}
    settings = Distill.model_validate({"tokens": 64, "warmup_steps": 3, "correction": correction})
    silent = {"tokens": None, "warmup_steps": None, "learning_rate": None}
    assert own_flags(settings, silent) == settings
    given = own_flags(settings, {"tokens": "64", "warmup_steps": 3, "learning_rate": 1e-3}).correction
    assert (given.tokens, given.warmup_steps, given.learning_rate) == (64, 3, None)


@pytest.mark.parametrize("name", ["run", "plan", "distill", "sparsify"])
def test_help_shows_every_option_once_under_its_heading(name: str, capsys: Capture) -> None:
    command = cli.commands[name]
    assert isinstance(command, SectionedCommand)
    assert invoke([name, "--help"]) == 0
    shown = capsys.readouterr().out
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            flag = max(parameter.opts, key=len)
            assert sum(flag in line.split() or f"{flag}," in line.split() for line in shown.splitlines()) >= 1
    assert shown.index(f"{OPTIONS}:") < shown.index("Training:") < shown.index("Every command:")


@pytest.mark.parametrize("name", ["run", "plan", "distill"])
def test_commands_that_distill_take_every_flag_of_it(name: str) -> None:
    names = {parameter.name for parameter in cli.commands[name].params}
    assert {*TRAINING_FIELDS, *DISTILLATION_FIELDS} <= names
    assert names & {"kl_weight"} == ({"kl_weight"} if name != "distill" else set())
    assert {*TRAINING_FIELDS, *DISTILLATION_FIELDS} <= set(RECIPE_FIELDS)


def test_distill_takes_a_recipe_and_flags_override_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    tiny_text: Path,
    capsys: Capture,
) -> None:
    seen: dict[str, Any] = {}

    def stand_in(stage: Any, config: Any, source: Any, out_dir: Path, flags: Any, *_: Any, **__: Any) -> Any:
        seen.update(config=config, flags=flags)
        return source

    monkeypatch.setattr(stage_command, "execute_stage", stand_in)
    distill = {"top_k": 1000, "tokens": 9000, "data": str(tiny_text)}
    tree = {"model": "m", "seed": 7, "dtype": "float32", "distill": distill}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    words = ["distill", str(tiny_checkpoint), "--teacher", str(tiny_checkpoint), "--config", str(recipe)]
    assert invoke([*words, "--tokens", "5k", "-o", str(tmp_path / "out")]) == 0
    assert (seen["config"].top_k, seen["config"].tokens) == (1000, 5000)
    assert (seen["flags"]["seed"], seen["flags"]["dtype"]) == (7, "float32")
    assert str(tiny_checkpoint) in capsys.readouterr().out
