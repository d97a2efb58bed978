"""Finished and unfinished runs are altered, one file at a time, and run again: nothing passes in silence.

Every alteration is either refused, by the file's name and with the command that makes it again, or what it
concerns is made again, is said to be, and ends in the bytes of the run that nobody touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.distillation import generate_stage as generate
from compressor.runs.artifact import LOGS, write_json
from compressor.training import callbacks
from compressor.training.checkpoints import mark_complete
from tests.integration.command import command_here, digests, write_recipe

Alter = Callable[[Path], object]
FINISHED, UNFINISHED, SAMPLING = "finished", "unfinished", "sampling"
WEIGHTS, RECORD = "model.safetensors", "artifact.json"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1 if path.suffix == ".safetensors" else len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def zero_weights(path: Path) -> None:
    """A header that is right, and nothing but zeros behind it."""
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:header] + bytes(len(data) - header))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def garbage(path: Path) -> None:
    path.write_text("{")


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_link(path: Path) -> None:
    """A link to other contents of the same size."""
    other = path.parents[2] / f"other-{path.name}"
    shutil.move(path, other)
    flip(other)
    path.symlink_to(other)


def replace_by(other: str) -> Alter:
    """The whole entry replaced by another one of the same run."""

    def alter(path: Path) -> None:
        source = next(parent / other for parent in path.parents if (parent / other).exists())
        remove(path)
        if source.is_dir():
            shutil.copytree(source, path)
        else:
            shutil.copy(source, path)

    return alter


def edit(change: Callable[[dict[str, Any]], object]) -> Alter:
    """A JSON file edited by hand."""

    def alter(path: Path) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record, indent=2) + "\n")

    return alter


def set_to(**fields: object) -> Alter:
    return edit(lambda record: record.update(fields))


def append_line(path: Path) -> None:
    path.write_text(path.read_text() + "\n# by hand\n")


def result(out: Path) -> dict[str, str]:
    """sha256 of the student, its training and the text sampled for it.

    Curves for people are left out: they carry times and hosts.
    """
    found = digests(out, ("student", "stages/distill", "stages/generate"))
    return {name: digest for name, digest in found.items() if f"/{LOGS}/" not in name}


def _stage_of(path: str) -> str:
    top, *below = path.split("/")
    return below[0].partition(".")[0] if top == "stages" else "export"


CHECKPOINT = "stages/distill.partial/checkpoints/checkpoint-15"
TOKENS = "stages/distill.partial/tokens/0.bin"
TEXT = "stages/generate.partial/text.jsonl"
PROGRESS = "stages/generate.partial/progress.json"
GONE = "is gone; it is made again"
REWRITTEN = "it is written again"
FROM_THE_START = "the same command samples from the start"
SAMPLED = "generate: stages/generate: "
DAMAGED = "is damaged and not used"

# Of which run, and the exit code of the same command; then what is altered, relative to the run
# directory, how, and what is said beside its name: by default, how its stage is made again.
ALTERATIONS: dict[tuple[str, int], dict[str, tuple[Any, ...]]] = {
    (FINISHED, 8): {
        "pruned weights: a bit": (f"stages/prune/{WEIGHTS}", flip),
        "repaired weights: a bit": (f"stages/reconstruct/{WEIGHTS}", flip),
        "distilled weights: a bit": (f"stages/distill/{WEIGHTS}", flip),
        "distilled weights: all zero": (f"stages/distill/{WEIGHTS}", zero_weights),
        "distilled weights: the student before": (
            f"stages/distill/{WEIGHTS}",
            replace_by(f"stages/reconstruct/{WEIGHTS}"),
        ),
        "student's weights: a bit": (f"student/{WEIGHTS}", flip),
        "quantised weights: a bit": (f"stages/quantize/{WEIGHTS}", flip),
        "FP8 weights: a bit": (f"stages/quantize/huggingface-fp8/{WEIGHTS}", flip),
        "calibrated maxima: a bit": ("stages/quantize/amax.safetensors", flip),
        "scores: a bit": ("stages/prune/importance.safetensors", flip),
        "prune plan: another layer": ("stages/prune/prune_plan.json", set_to(layers=[0])),
        "config: another epsilon": ("stages/distill/config.json", set_to(rms_norm_eps=1e-3)),
        "config: a directory": ("student/config.json", into_directory),
        "config: a link elsewhere": ("student/config.json", into_link),
        "tokenizer: a character": ("student/tokenizer.json", flip),
        "added masks": ("stages/distill/masks.safetensors", add, "remove "),
        "added adapter": ("student/adapter/adapter_config.json", add, "remove "),
        "graph: a weight": ("exports/onnx/model.onnx.data", flip),
        "graph: its config": ("exports/onnx/genai_config.json", set_to(search={})),
        "export's verdict: edited": ("exports/onnx/verification.json", set_to(status="reported")),
        "export's verdict: deleted": ("exports/onnx/verification.json", remove),
        "FP8 export: deleted weights": (f"exports/huggingface-fp8/{WEIGHTS}", remove),
        "evaluation: a better figure": ("stages/evaluate/evaluation.json", set_to(models={})),
        "record: fingerprint": (f"stages/prune/{RECORD}", set_to(fingerprint="0" * 64)),
        "record: parameters": (f"stages/distill/{RECORD}", set_to(num_parameters=7)),
        "record: a file left out": (f"student/{RECORD}", edit(lambda of: of["files"].pop(WEIGHTS))),
        "record: another sum": (
            f"student/{RECORD}",
            edit(lambda of: of["files"][WEIGHTS].update(sha256="0")),
        ),
        "record: details": (f"stages/evaluate/{RECORD}", set_to(details={})),
        "record: no JSON": (f"stages/quantize/{RECORD}", garbage, "quantize"),
        "manifest: another stage": (
            "manifest.json",
            edit(lambda of: of["stages"]["stages/prune"].update(fingerprint="0")),
            "--overwrite",
        ),
        "manifest: a warning less": ("manifest.json", set_to(versions={}), "--overwrite"),
        "manifest: no JSON": ("manifest.json", garbage, "manifest.json"),
    },
    (FINISHED, 2): {
        "record: deleted": (f"stages/distill/{RECORD}", remove),
        "stage: another one in its place": ("stages/distill", replace_by("stages/prune")),
        "stage: a file in its place": ("student", replace_by("README.md")),
        "manifest: deleted": ("manifest.json", remove, "an empty directory"),
    },
    (FINISHED, 0): {
        "recipe: edited": ("recipe.yaml", append_line, REWRITTEN),
        "plan: edited": ("plan.json", set_to(tokens=1), REWRITTEN),
        "card: deleted": ("README.md", remove, REWRITTEN),
        "student: deleted": ("student", remove, GONE),
        "pruned: deleted": ("stages/prune", remove, GONE),
        "export: deleted": ("exports/onnx", remove, GONE),
    },
    (UNFINISHED, 8): {
        "repaired weights, read next: a bit": (f"stages/reconstruct/{WEIGHTS}", flip),
        "repaired config, read next": ("stages/reconstruct/config.json", set_to(rms_norm_eps=1e-3)),
        "inputs: no JSON": ("stages/distill.partial/stage.json", garbage, "stage.json"),
        "tokens: a bit": (TOKENS, flip, "the same command"),
        "tokens: cut": (TOKENS, truncate, "the same command"),
        "tokens: starts deleted": (f"{TOKENS}.starts", remove, "the same command"),
        "tokens: their record edited": (f"{TOKENS}.json", set_to(files={}), "delete"),
        "checkpoints: all with an empty part": (
            "stages/distill.partial/checkpoints",
            lambda path: [empty(file) for file in path.glob("*/__0_0.distcp")],
            "--restart-from its stage",
        ),
    },
    (UNFINISHED, 2): {
        "inputs: edited": ("stages/distill.partial/stage.json", set_to(seed=5)),
        "inputs: deleted": ("stages/distill.partial/stage.json", remove),
    },
    (UNFINISHED, 0): {
        "checkpoint: empty part": (f"{CHECKPOINT}/__0_0.distcp", empty, DAMAGED),
        "checkpoint: a weight's bit": (f"{CHECKPOINT}/__0_0.distcp", flip, DAMAGED),
        "checkpoint: random state": (f"{CHECKPOINT}/rng_state.pth", truncate, DAMAGED),
        "checkpoint: its own record": (f"{CHECKPOINT}/.metadata", flip, DAMAGED),
        "checkpoint: data position": (f"{CHECKPOINT}/progress.json", append_line, DAMAGED),
        "checkpoint: deleted state": (f"{CHECKPOINT}/trainer_state.json", remove, DAMAGED),
        "checkpoint: mark edited": (f"{CHECKPOINT}/complete", set_to(files={}), DAMAGED),
        "checkpoint: mark deleted": (f"{CHECKPOINT}/complete", remove, "was not finished and is removed"),
        "unfinished output: a file too many": (
            "stages/distill.partial/masks.safetensors",
            add,
            "distill: stages/distill: ",
        ),
    },
    (SAMPLING, 8): {
        "sampled text: a bit": (TEXT, flip, FROM_THE_START),
        "sampled text: cut": (TEXT, truncate, FROM_THE_START),
        "sampled text: all zero": (TEXT, zero, FROM_THE_START),
        "sampled text: deleted": (TEXT, remove, FROM_THE_START),
        "sampling's progress: a batch less": (PROGRESS, set_to(num_batches=1), FROM_THE_START),
        "sampling's progress: no JSON": (PROGRESS, garbage, "progress.json"),
    },
    (SAMPLING, 0): {
        "sampled text: longer": (TEXT, append, SAMPLED),
        "sampling's progress: deleted": (PROGRESS, remove, SAMPLED),
        "sampling: a file too many": ("stages/generate.partial/masks.safetensors", add, SAMPLED),
    },
    (SAMPLING, 2): {
        "sampling's inputs: edited": ("stages/generate.partial/stage.json", set_to(seed=5)),
        "sampling's inputs: deleted": ("stages/generate.partial/stage.json", remove),
    },
}
CASES = {name: (*key, *row) for key, rows in ALTERATIONS.items() for name, row in rows.items()}


@dataclass(frozen=True)
class Runs:
    """Runs and the recipes that made them, below one directory; not to be changed.

    A finished one has every kind of stage; one interrupted while it trained the same student is without FP8
    and ONNX, which take long. One was interrupted while its teacher was sampled, and one was not.
    """

    root: Path

    def recipe(self, of: str = FINISHED) -> Path:
        return self.root / f"{of}.yaml"

    def whole(self, of: str) -> Path:
        """The run that nobody interrupted or touched."""
        return self.root / ("sampled" if of == SAMPLING else FINISHED)

    def again(self, out: Path, *options: object, of: str = FINISHED) -> Any:
        return command_here("run", "--config", self.recipe(of), "-o", out, *options)


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("tampering"))
    training: dict[str, Any] = {"micro_batch_size": 4, "save_steps": 5}
    sampling = {**training, "tokens": 512, "generate": {"tokens": 900, "max_new_tokens": 16}}
    whole = {"quantize": {"fp8": True}, "export": {"formats": ["huggingface-fp8", "onnx"]}}
    short = {"export": {"formats": ["huggingface"]}}
    for name, distill, sections in (
        (FINISHED, training, whole),
        (UNFINISHED, training, short),
        (SAMPLING, sampling, short),
    ):
        recipe, given = made.recipe(name), (tiny_checkpoint, tiny_text)
        write_recipe(recipe, *given, distill=distill, evaluate={"size": 2}, **sections)
    for name in (FINISHED, SAMPLING):
        done = made.again(made.whole(name), of=name)
        assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "mark_complete", _then_interrupt(mark_complete, "checkpoint-15"))
        patch.setattr(generate, "write_json", _then_interrupt(write_json, {"num_batches": 2}))
        for name in (UNFINISHED, SAMPLING):
            assert made.again(made.root / name, of=name).returncode == 130
    return made


def _then_interrupt(write: Callable[..., None], last: str | dict[str, int]) -> Callable[..., None]:
    """Stands in for a kill right after a checkpoint or a batch: nothing in the code under test catches it."""

    def interrupted(path: Path, *progress: dict[str, Any]) -> None:
        write(path, *progress)
        if path.name == last or (progress and last.items() <= progress[0].items()):  # type: ignore[union-attr]
            raise KeyboardInterrupt

    return interrupted


@pytest.mark.parametrize("name", CASES)
def test_an_alteration_is_refused_by_name_or_made_good(runs: Runs, tmp_path: Path, name: str) -> None:
    of, code, path, alter, *says = CASES[name]
    out = Path(shutil.copytree(runs.root / of, tmp_path / "out"))
    alter(out / path)

    done = runs.again(out, of=of)

    assert done.returncode == code, done.stderr
    assert (says or [f"--restart-from {_stage_of(path)}"])[0] in done.stderr
    assert "unexpected" not in done.stderr
    if code:
        assert Path(path).name in done.stderr
    else:
        assert result(out) == result(runs.whole(of))


def test_nothing_is_said_of_runs_that_nobody_touched(runs: Runs, tmp_path: Path) -> None:
    finished, unfinished = (
        Path(shutil.copytree(runs.root / name, tmp_path / name)) for name in (FINISHED, UNFINISHED)
    )
    done = runs.again(finished)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert "compared with their sha256" in done.stderr
    done = runs.again(unfinished, of=UNFINISHED)
    assert done.returncode == 0, done.stderr
    assert result(unfinished) == result(runs.whole(FINISHED))


def test_the_named_command_makes_it_good(runs: Runs, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs.whole(FINISHED), tmp_path / "out"))
    flip(out / "stages" / "distill" / WEIGHTS)
    assert runs.again(out).returncode == 8

    assert runs.again(out, "--restart-from", "distill").returncode == 0
    assert result(out) == result(runs.whole(FINISHED))


def test_without_the_check_it_is_said(runs: Runs, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs.whole(FINISHED), tmp_path / "out"))
    flip(out / "student" / WEIGHTS)

    done = runs.again(out, "--no-check", "--quiet")
    assert done.returncode == 0
    assert "--no-check: the contents of" in done.stderr


@pytest.mark.parametrize("file", ["model", "text"])
def test_what_the_run_was_given_is_compared_too(
    runs: Runs, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, file: str
) -> None:
    out = Path(shutil.copytree(runs.whole(FINISHED), tmp_path / "out"))
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    text = Path(shutil.copy(tiny_text, tmp_path / "moved.txt"))
    tree = yaml.safe_load(runs.recipe().read_text(encoding="utf-8"))
    tree["model"] = str(model)
    for section in ("calibration", "distill"):
        tree[section]["data"] = str(text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    moved = Path(shutil.move(out, tmp_path / "elsewhere"))
    out.symlink_to(moved, target_is_directory=True)

    done = command_here("run", "--config", recipe, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already there") == len(list((out / "stages").iterdir())) + 3
    if file == "model":
        flip(model / WEIGHTS)
    else:
        text.write_text(text.read_text(encoding="utf-8") + "one more line\n", encoding="utf-8")
    done = command_here("run", "--config", recipe, "-o", out)
    assert done.returncode == 2
    assert "of a different run" in done.stderr
