"""`verify` of a whole run: what its recipe demands, what lies beside it, and runs that were moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import read_artifact, sealed
from exporters.checks.run import demanded
from tests.gguf_files import TinyGguf
from tests.integration.command import command_here, succeed_here, write_recipe
from tests.integration.test_tampering import flip

STAGES = ("stages/prune", "stages/reconstruct", "stages/evaluate")


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that prunes and exports; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(
        root / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        distill={"tokens": 0},
        export={"formats": ["huggingface", "tensorrt-llm"]},
    )
    succeed_here("run", "--config", recipe, "-o", root / "out")
    return root / "out"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "elsewhere" / "moved"))


def test_a_moved_run_is_compared_part_by_part(run: Path) -> None:
    checked = {Path(entry["path"]).name: entry for entry in succeed_here("verify", run)["checked"]}
    assert set(checked) == {"prune", "reconstruct", "student", "tensorrt-llm", "evaluate"}
    assert checked["prune"]["num_recomputed_tensors"] == 20
    assert (checked["student"]["status"], checked["tensorrt-llm"]["status"]) == ("bit-equal", "passed")


def test_a_part_of_a_run_knows_its_source(run: Path) -> None:
    for part in ("stages/prune", "exports/tensorrt-llm"):
        entry = succeed_here("verify", run / part)["checked"][0]
        assert "num_recomputed_tensors" in entry or entry["status"] == "passed"


def test_without_its_teacher_a_run_says_what_was_not_compared(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    alone = Path(shutil.copytree(run / "stages" / "prune", tmp_path / "prune"))
    entry = succeed_here("verify", alone)["checked"][0]
    assert "--source MODEL" in entry["contents"]
    assert (
        "num_recomputed_tensors" in succeed_here("verify", alone, "--source", tiny_checkpoint)["checked"][0]
    )


def again(run: Path, recipe: Path, **sections: Any) -> None:
    """The command that made a run, again, with some of its recipe's sections changed."""
    tree = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    for name, section in sections.items():
        tree[name] = {**tree[name], **section} if isinstance(section, dict) else section
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    succeed_here("run", "--config", recipe, "-o", run)


def verified(run: Path) -> dict[str, Any]:
    """What `verify` found, by directory."""
    report = succeed_here("verify", run)
    return {Path(entry["path"]).relative_to(run).as_posix(): entry for entry in report["checked"]}


def refused(directory: Path, said: str, *options: object, code: int = 8) -> None:
    done = command_here("verify", directory, *options)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_a_text_that_was_moved_is_the_same(run: Path, tiny_text: Path, tmp_path: Path) -> None:
    text = str(shutil.copy(tiny_text, tmp_path / "moved.md"))
    again(run, tmp_path / "again.yaml", calibration={"data": text}, distill={"data": text})
    assert text in (run / "recipe.yaml").read_text()
    assert verified(run)["stages/prune"]["contents"] == "compared with its source"

    Path(text).write_text("another text\n" * 500, encoding="utf-8")
    refused(run, "recipe.yaml: calibration.data")


def test_formats_may_be_changed_and_what_is_there_is_still_checked(run: Path, tmp_path: Path) -> None:
    before, now = "exports/tensorrt-llm", "exports/tensorrt-llm-fp16"
    again(run, tmp_path / "again.yaml", export={"formats": ["tensorrt-llm-fp16", "huggingface"]})
    checked = verified(run)
    assert set(checked) == {*STAGES, "student", before, now}
    assert checked[before]["status"] == "passed"

    weights = next((run / before / "checkpoint").glob("*.safetensors"))
    flip(weights)
    refused(run, str(weights))
    shutil.rmtree(run / before)
    assert set(verified(run)) == {*STAGES, "student", now}
    shutil.rmtree(run / now)
    assert command_here("verify", run).returncode == 8

    again(run, tmp_path / "again.yaml", export={"formats": ["huggingface"]})
    assert set(verified(run)) == {*STAGES, "student"}


def test_a_stage_that_the_recipe_does_not_demand_is_checked(run: Path) -> None:
    stages = run / "stages"
    shutil.copytree(stages / "prune", stages / "sparsify")
    for unfinished in ("distill.partial", "recover.discarded-0"):
        (stages / unfinished).mkdir()
        (stages / unfinished / "half").touch()
    checked = verified(run)
    assert checked["stages/sparsify"]["num_recomputed_tensors"] == 20
    assert not any("." in name for name in checked)

    flip(stages / "sparsify" / "model.safetensors")
    refused(run, "stages/sparsify/model.safetensors")


def test_an_export_made_by_hand_is_compared_with_what_it_was_made_from(run: Path) -> None:
    """Whatever it is called: nothing was quantised here."""
    made = run / "exports" / "mine-fp8"
    succeed_here("export", run / "student", "--format", "tensorrt-llm", "-o", made)
    assert verified(run)["exports/mine-fp8"]["status"] == "passed"
    assert succeed_here("verify", made)["checked"][0]["status"] == "passed"
    shutil.rmtree(made)
    assert "exports/mine-fp8" not in verified(run)


def test_an_export_of_another_model_says_that_it_was_not_compared(run: Path, tmp_path: Path) -> None:
    other, made = Path(shutil.copytree(run / "student", tmp_path / "other")), run / "exports/mine"
    for record in ("artifact.json", "verification.json"):
        (other / record).unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    succeed_here("export", other, "--format", "huggingface", "--precision", "bf16", "-o", made)
    for directory in (run, made):
        entry = succeed_here("verify", directory)["checked"][-1]
        assert (Path(entry["path"]).name, entry["status"]) == ("mine", "ok")
        assert "no part of this run is what it was made from" in entry["contents"]
        assert "no part of this run" in command_here("verify", directory).stdout


def test_a_teacher_that_is_no_longer_the_same_is_said_not_to_be_compared(
    run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    again(run, tmp_path / "again.yaml", model=str(model))
    assert succeed_here("verify", run)["notes"] == []
    flip(model / "model.safetensors")

    report = succeed_here("verify", run)
    [note] = report["notes"]
    assert str(model) in note
    assert "not compared" in note
    assert note in command_here("verify", run).stdout.splitlines()
    prune = next(entry for entry in report["checked"] if entry["path"].endswith("prune"))
    assert str(model) in prune["contents"]
    assert "num_recomputed_tensors" not in prune
    assert str(model) in succeed_here("verify", run / "stages" / "prune")["checked"][0]["contents"]
    assert succeed_here("verify", run, "--source", tiny_checkpoint)["notes"] == []


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / name).read_text(encoding="utf-8")
        assert old in text
        (run / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def other_inputs(run: Path) -> None:
    artifact = read_artifact(run / "stages" / "prune")
    replace(artifact, inputs={**artifact.inputs, "seed": 7}).write()


def removed(name: str) -> Callable[[Path], None]:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"deleted {name}": (removed(name), name)
        for name in (
            *("stages/prune", "exports/tensorrt-llm", "student", "stages/evaluate"),
            *("recipe.yaml", "plan.json", "manifest.json", "README.md"),
        )
    },
    "edited recipe": (edited("recipe.yaml", "importance: activation", "importance: random"), "recipe.yaml"),
    "unreadable recipe": (edited("recipe.yaml", "seed: 0", "seed: [0"), "recipe"),
    "edited plan": (edited("plan.json", '"hidden_size": 48', '"hidden_size": 40'), "plan.json"),
    "edited card": (edited("README.md", "% ", "9% "), "README.md"),
    "edited manifest": (edited("manifest.json", '"stage": "prune"', '"stage": "distill"'), "manifest|prune"),
    "other inputs": (other_inputs, "fingerprint"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_that_is_not_what_it_says_is_refused(name: str, run: Path) -> None:
    plant, message = FAULTS[name]
    plant(run)
    done = command_here("verify", run)
    assert done.returncode == 8, done.stderr
    assert message.split("|")[0] in done.stderr or message.split("|")[-1] in done.stderr


def test_an_unfinished_run_is_checked_as_far_as_it_is(run: Path) -> None:
    """As a kill between two stages leaves it: neither directory nor entry."""
    shutil.rmtree(run / "stages" / "evaluate")
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["stages"]["stages/evaluate"], manifest["seal"]
    (run / "manifest.json").write_text(json.dumps(sealed(manifest)))
    refused(run, "stages/evaluate", code=2)


RECIPES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "prune only": (
        {
            "repair": {"method": "off"},
            "distill": {"tokens": 0},
            "bench": {"runtime": "none"},
            "export": {"formats": ["huggingface"]},
        },
        {"stages/prune", "student", "stages/evaluate"},
    ),
    "everything": (
        {
            "distill": {"tokens": 9, "generate": {"tokens": 5}, "correction": {"mode": "first"}},
            "sparsify": {"pattern": "2:4"},
            "quantize": {"fp8": True},
            "repair": {"method": "least-squares", "fp8": True},
        },
        {
            *(f"stages/{name}" for name in ("prune", "reconstruct", "generate", "correct", "distill")),
            *(f"stages/{name}" for name in ("sparsify", "reconstruct-sparse", "recover", "quantize")),
            *("stages/reconstruct-fp8", "student", "exports/huggingface-fp8"),
            *("exports/tensorrt-llm-fp8", "exports/onnx", "exports/onnx-int4", "stages/evaluate"),
            *("stages/teacher-onnx", "stages/teacher-onnx-int4", "bench"),
        },
    ),
    "a runtime without the precisions": (
        {
            "repair": {"method": "off"},
            "distill": {"tokens": 0},
            "export": {"formats": ["huggingface"]},
            "bench": {"runtime": "torch", "precisions": ["int4"]},
        },
        {"stages/prune", "student", "stages/evaluate"},
    ),
    "sparse with branches": (
        {
            "distill": {"tokens": 0},
            "sparsify": {"pattern": "2:4", "slorb": "fixed"},
            "repair": {"method": "least-squares"},
            "export": {"formats": ["huggingface"]},
            "bench": {"runtime": "none"},
        },
        {
            *(
                f"stages/{name}"
                for name in ("prune", "reconstruct", "sparsify", "reconstruct-sparse", "evaluate")
            )
        }
        | {"student"},
    ),
    "sparse without recovery, no graphs": (
        {
            "repair": {"method": "off"},
            "distill": {"tokens": 9},
            "sparsify": {"pattern": "2:4", "tokens": 0},
            "export": {"formats": ["huggingface", "tensorrt-llm"]},
        },
        {"stages/prune", "stages/distill", "stages/sparsify", "student", "exports/tensorrt-llm"}
        | {"stages/evaluate"},
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_demands(name: str) -> None:
    tree, places = RECIPES[name]
    assert set(demanded(Recipe.model_validate({"model": "m", **tree}))) == places


def test_fp8_exports_are_made_from_the_repaired_model() -> None:
    for repairs, source in ((False, "stages/quantize"), (True, "stages/reconstruct-fp8")):
        tree = {"distill": {"tokens": 0}, "quantize": {"fp8": True}, "repair": {"fp8": repairs}}
        places = demanded(Recipe.model_validate({"model": "m", **tree}))
        assert places["exports/huggingface-fp8"] == source
        assert places["student"] == places["stages/quantize"] == "stages/reconstruct"
        assert places.get("stages/reconstruct-fp8", "stages/quantize") == "stages/quantize"


def test_a_run_from_a_gguf_file_is_compared_with_what_it_was_made_from(
    tiny_text: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model, out = TinyGguf().write(tmp_path / "tiny.gguf"), tmp_path / "out"
    words = ("--shape", "hidden_size=48,intermediate_size=64", "--importance", "random", "--tokens", 0)
    words += ("--eval-data", tiny_text, "--formats", "huggingface", "--repair", "off", "-o", out)
    succeed_here("run", model, *words)
    model.unlink()  # the conversion is what the run was made from

    checked = {Path(entry["path"]).name: entry for entry in succeed_here("verify", out)["checked"]}
    assert checked["prune"]["num_recomputed_tensors"] == 20
    refused(out, "not the model that the run was made from", "--source", tiny_checkpoint, code=2)

    [config] = [file for file in out.glob("stages/*/config.json") if file.parent.name != "prune"]
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    refused(out, str(config))
