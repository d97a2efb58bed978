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
from tests.integration.command import command_here, digests

Alter = Callable[[Path], object]
FINISHED, UNFINISHED, SAMPLING = "finished", "unfinished", "sampling"
WEIGHTS, RECORD = "model.safetensors", "artifact.json"


@dataclass(frozen=True)
class Case:
    """One alteration: of which run, of which entry, how, and what the next start must do about it.

    Attributes:
        of: A finished run, or one interrupted while it distilled, or while its teacher was sampled.
        path: What is altered, relative to the run directory.
        alter: How.
        code: Exit code of the same command; 0 where the run makes good what was altered.
        says: What must be on stderr beside the entry's name; for a refusal, the way out.
    """

    of: str
    path: str
    alter: Alter
    code: int
    says: str


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


def forget_weights(record: dict[str, Any]) -> None:
    del record["files"][WEIGHTS]


def other_sum(record: dict[str, Any]) -> None:
    record["files"][WEIGHTS]["sha256"] = "0" * 64


def other_fingerprint(record: dict[str, Any]) -> None:
    record["stages"]["stages/prune"]["fingerprint"] = "0" * 64


def result(out: Path) -> dict[str, str]:
    """sha256 of the student, its training and the text sampled for it.

    Curves for people are left out: they carry times and hosts.
    """
    found = digests(out, ("student", "stages/distill", "stages/generate"))
    return {name: digest for name, digest in found.items() if f"/{LOGS}/" not in name}


def redo(stage: str) -> str:
    return f"--restart-from {stage}"


def refused(path: str, alter: Alter, says: str, *, of: str = FINISHED, code: int = 8) -> Case:
    return Case(of, path, alter, code, says)


def redone(path: str, alter: Alter, says: str, *, of: str = FINISHED) -> Case:
    return Case(of, path, alter, 0, says)


CHECKPOINT = "stages/distill.partial/checkpoints/checkpoint-15"
TOKENS = "stages/distill.partial/tokens/0.bin"
TEXT = "stages/generate.partial/text.jsonl"
PROGRESS = "stages/generate.partial/progress.json"
GONE = "is gone; it is made again"
REWRITTEN = "it is written again"
FROM_THE_START = "the same command samples from the start"
SAMPLED = "generate: stages/generate: "
DAMAGED = "is damaged and not used"

CASES: dict[str, Case] = {
    "pruned weights: a bit": refused(f"stages/prune/{WEIGHTS}", flip, redo("prune")),
    "pruned weights: cut": refused(f"stages/prune/{WEIGHTS}", truncate, redo("prune")),
    "pruned weights: header of zeros": refused(f"stages/prune/{WEIGHTS}", zero, redo("prune")),
    "repaired weights: a bit": refused(f"stages/reconstruct/{WEIGHTS}", flip, redo("reconstruct")),
    "distilled weights: a bit": refused(f"stages/distill/{WEIGHTS}", flip, redo("distill")),
    "distilled weights: longer": refused(f"stages/distill/{WEIGHTS}", append, redo("distill")),
    "distilled weights: all zero": refused(f"stages/distill/{WEIGHTS}", zero_weights, redo("distill")),
    "distilled weights: the student before": refused(
        f"stages/distill/{WEIGHTS}", replace_by(f"stages/reconstruct/{WEIGHTS}"), redo("distill")
    ),
    "student's weights: a bit": refused(f"student/{WEIGHTS}", flip, redo("export")),
    "student's weights: deleted": refused(f"student/{WEIGHTS}", remove, redo("export")),
    "quantised weights: a bit": refused(f"stages/quantize/{WEIGHTS}", flip, redo("quantize")),
    "FP8 weights: a bit": refused(f"stages/quantize/huggingface-fp8/{WEIGHTS}", flip, redo("quantize")),
    "calibrated maxima: a bit": refused("stages/quantize/amax.safetensors", flip, redo("quantize")),
    "scores: a bit": refused("stages/prune/importance.safetensors", flip, redo("prune")),
    "prune plan: another layer": refused("stages/prune/prune_plan.json", set_to(layers=[0]), redo("prune")),
    "config: another epsilon": refused(
        "stages/distill/config.json", set_to(rms_norm_eps=1e-3), redo("distill")
    ),
    "config: a directory": refused("student/config.json", into_directory, redo("export")),
    "config: a link elsewhere": refused("student/config.json", into_link, redo("export")),
    "tokenizer: a character": refused("student/tokenizer.json", flip, redo("export")),
    "added masks": refused("stages/distill/masks.safetensors", add, "remove "),
    "added adapter": refused("student/adapter/adapter_config.json", add, "remove "),
    "graph: a weight": refused("exports/onnx/model.onnx.data", flip, redo("export")),
    "graph: its config": refused("exports/onnx/genai_config.json", set_to(search={}), redo("export")),
    "export's verdict: edited": refused(
        "exports/onnx/verification.json", set_to(status="reported"), redo("export")
    ),
    "export's verdict: deleted": refused("exports/onnx/verification.json", remove, redo("export")),
    "FP8 export: deleted weights": refused(f"exports/huggingface-fp8/{WEIGHTS}", remove, redo("export")),
    "evaluation: a better figure": refused(
        "stages/evaluate/evaluation.json", set_to(models={}), redo("evaluate")
    ),
    "record: fingerprint": refused(f"stages/prune/{RECORD}", set_to(fingerprint="0" * 64), redo("prune")),
    "record: parameters": refused(f"stages/distill/{RECORD}", set_to(num_parameters=7), redo("distill")),
    "record: a file left out": refused(f"student/{RECORD}", edit(forget_weights), redo("export")),
    "record: another sum": refused(f"student/{RECORD}", edit(other_sum), redo("export")),
    "record: details": refused(f"stages/evaluate/{RECORD}", set_to(details={}), redo("evaluate")),
    "record: no JSON": refused(f"stages/quantize/{RECORD}", garbage, "quantize"),
    "record: deleted": refused(f"stages/distill/{RECORD}", remove, redo("distill"), code=2),
    "stage: another one in its place": refused(
        "stages/distill", replace_by("stages/prune"), redo("distill"), code=2
    ),
    "stage: a file in its place": refused("student", replace_by("README.md"), redo("export"), code=2),
    "manifest: another stage": refused("manifest.json", edit(other_fingerprint), "--overwrite"),
    "manifest: a warning less": refused("manifest.json", set_to(versions={}), "--overwrite"),
    "manifest: no JSON": refused("manifest.json", garbage, "manifest.json"),
    "manifest: deleted": refused("manifest.json", remove, "an empty directory", code=2),
    "recipe: edited": redone("recipe.yaml", append_line, REWRITTEN),
    "plan: edited": redone("plan.json", set_to(tokens=1), REWRITTEN),
    "card: deleted": redone("README.md", remove, REWRITTEN),
    "student: deleted": redone("student", remove, GONE),
    "pruned: deleted": redone("stages/prune", remove, GONE),
    "export: deleted": redone("exports/onnx", remove, GONE),
    "repaired weights, read next: a bit": refused(
        f"stages/reconstruct/{WEIGHTS}", flip, redo("reconstruct"), of=UNFINISHED
    ),
    "repaired config, read next": refused(
        "stages/reconstruct/config.json", set_to(rms_norm_eps=1e-3), redo("reconstruct"), of=UNFINISHED
    ),
    "inputs: edited": refused(
        "stages/distill.partial/stage.json", set_to(seed=5), redo("distill"), of=UNFINISHED, code=2
    ),
    "inputs: no JSON": refused("stages/distill.partial/stage.json", garbage, "stage.json", of=UNFINISHED),
    "inputs: deleted": refused(
        "stages/distill.partial/stage.json", remove, redo("distill"), of=UNFINISHED, code=2
    ),
    "tokens: a bit": refused(TOKENS, flip, "the same command", of=UNFINISHED),
    "tokens: cut": refused(TOKENS, truncate, "the same command", of=UNFINISHED),
    "tokens: starts deleted": refused(f"{TOKENS}.starts", remove, "the same command", of=UNFINISHED),
    "tokens: their record edited": refused(f"{TOKENS}.json", set_to(files={}), "delete", of=UNFINISHED),
    "checkpoint: empty part": redone(f"{CHECKPOINT}/__0_0.distcp", empty, DAMAGED, of=UNFINISHED),
    "checkpoint: a weight's bit": redone(f"{CHECKPOINT}/__0_0.distcp", flip, DAMAGED, of=UNFINISHED),
    "checkpoint: random state": redone(f"{CHECKPOINT}/rng_state.pth", truncate, DAMAGED, of=UNFINISHED),
    "checkpoint: its own record": redone(f"{CHECKPOINT}/.metadata", flip, DAMAGED, of=UNFINISHED),
    "checkpoint: data position": redone(f"{CHECKPOINT}/progress.json", append_line, DAMAGED, of=UNFINISHED),
    "checkpoint: deleted state": redone(f"{CHECKPOINT}/trainer_state.json", remove, DAMAGED, of=UNFINISHED),
    "checkpoint: mark edited": redone(f"{CHECKPOINT}/complete", set_to(files={}), DAMAGED, of=UNFINISHED),
    "checkpoint: mark deleted": redone(
        f"{CHECKPOINT}/complete", remove, "was not finished and is removed", of=UNFINISHED
    ),
    "checkpoints: all with an empty part": refused(
        "stages/distill.partial/checkpoints",
        lambda path: [empty(file) for file in path.glob("*/__0_0.distcp")],
        redo("its stage"),
        of=UNFINISHED,
    ),
    "unfinished output: a file too many": redone(
        "stages/distill.partial/masks.safetensors", add, "distill: stages/distill: ", of=UNFINISHED
    ),
    "sampled text: a bit": refused(TEXT, flip, FROM_THE_START, of=SAMPLING),
    "sampled text: cut": refused(TEXT, truncate, FROM_THE_START, of=SAMPLING),
    "sampled text: all zero": refused(TEXT, zero, FROM_THE_START, of=SAMPLING),
    "sampled text: deleted": refused(TEXT, remove, FROM_THE_START, of=SAMPLING),
    "sampled text: longer": redone(TEXT, append, SAMPLED, of=SAMPLING),
    "sampling's progress: a batch less": refused(
        PROGRESS, set_to(num_batches=1), FROM_THE_START, of=SAMPLING
    ),
    "sampling's progress: no JSON": refused(PROGRESS, garbage, "progress.json", of=SAMPLING),
    "sampling's progress: deleted": redone(PROGRESS, remove, SAMPLED, of=SAMPLING),
    "sampling's inputs: edited": refused(
        "stages/generate.partial/stage.json", set_to(seed=5), redo("generate"), of=SAMPLING, code=2
    ),
    "sampling's inputs: deleted": refused(
        "stages/generate.partial/stage.json", remove, redo("generate"), of=SAMPLING, code=2
    ),
    "sampling: a file too many": redone(
        "stages/generate.partial/masks.safetensors", add, SAMPLED, of=SAMPLING
    ),
}


@dataclass(frozen=True)
class Runs:
    """Runs and the recipes that made them, below one directory; not to be changed.

    A finished one has every kind of stage; one interrupted while it trained the same student is without FP8
    and ONNX, which take long. One was interrupted while its teacher was sampled, and one was not.
    """

    root: Path

    @property
    def finished(self) -> Path:
        return self.root / FINISHED

    @property
    def unfinished(self) -> Path:
        return self.root / UNFINISHED

    def recipe(self, of: str = FINISHED) -> Path:
        return self.root / f"{of}.yaml"

    def whole(self, of: str) -> Path:
        """The run that nobody interrupted or touched."""
        return self.root / "sampled" if of == SAMPLING else self.finished

    def again(self, out: Path, *options: object, of: str = FINISHED) -> Any:
        return command_here("run", "--config", self.recipe(of), "-o", out, *options)


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root, text = tmp_path_factory.mktemp("tampering"), str(tiny_text)
    tree = {
        "model": str(tiny_checkpoint),
        "prune": {"shape": {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}},
        "calibration": {"data": text, "size": 4, "seq_len": 32},
        "distill": {
            "data": text,
            "tokens": 2560,
            "context_length": 32,
            "batch_size": 4,
            "micro_batch_size": 4,
            "save_steps": 5,
        },
        "quantize": {"fp8": True},
        "evaluate": {"seq_len": 64, "size": 2},
        "export": {"formats": ["huggingface-fp8", "onnx"]},
        "bench": {"enabled": False},
    }
    short = {**tree, "quantize": {"fp8": False}, "export": {"formats": ["huggingface"]}}
    sampling = {"tokens": 512, "generate": {"tokens": 900, "max_new_tokens": 16}}
    sampled = {**short, "distill": {**tree["distill"], **sampling}}
    made = Runs(root)
    for name, recipe in ((FINISHED, tree), (UNFINISHED, short), (SAMPLING, sampled)):
        made.recipe(name).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for name in (FINISHED, SAMPLING):
        done = made.again(made.whole(name), of=name)
        assert done.returncode == 0, done.stderr
    _interrupt_at(made, step=15)
    _interrupt_sampling(made, num_batches=2)
    return made


def _interrupt_at(runs: Runs, *, step: int) -> None:
    """Stands in for a kill right after a checkpoint: nothing in the code under test catches it."""

    def mark(directory: Path) -> None:
        mark_complete(directory)
        if directory.name == f"checkpoint-{step}":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "mark_complete", mark)
        assert runs.again(runs.unfinished, of=UNFINISHED).returncode == 130


def _interrupt_sampling(runs: Runs, *, num_batches: int) -> None:
    """The same, right after a batch of samples."""

    def write(path: Path, progress: dict[str, Any]) -> None:
        write_json(path, progress)
        if progress["num_batches"] == num_batches:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "write_json", write)
        assert runs.again(runs.root / SAMPLING, of=SAMPLING).returncode == 130


@pytest.mark.parametrize("name", CASES)
def test_an_alteration_is_refused_by_name_or_made_good(runs: Runs, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    out = Path(shutil.copytree(runs.root / case.of, tmp_path / "out"))
    case.alter(out / case.path)

    done = runs.again(out, of=case.of)

    assert done.returncode == case.code, done.stderr
    assert case.says in done.stderr
    assert "unexpected" not in done.stderr
    if case.code:
        assert Path(case.path).name in done.stderr
    else:
        assert result(out) == result(runs.whole(case.of))


def test_there_are_enough_of_both() -> None:
    assert len(CASES) >= 50
    assert sum(case.of == UNFINISHED for case in CASES.values()) >= 15
    assert sum(case.of == SAMPLING for case in CASES.values()) >= 10


def test_nothing_is_said_of_runs_that_nobody_touched(runs: Runs, tmp_path: Path) -> None:
    finished, unfinished = (
        Path(shutil.copytree(base, tmp_path / base.name)) for base in (runs.finished, runs.unfinished)
    )
    done = runs.again(finished)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert "compared with their sha256" in done.stderr
    done = runs.again(unfinished, of=UNFINISHED)
    assert done.returncode == 0, done.stderr
    assert result(unfinished) == result(runs.finished)


def test_the_named_command_makes_it_good(runs: Runs, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs.finished, tmp_path / "out"))
    flip(out / "stages" / "distill" / WEIGHTS)
    assert runs.again(out).returncode == 8

    assert runs.again(out, "--restart-from", "distill").returncode == 0
    assert result(out) == result(runs.finished)


def test_without_the_check_it_is_said(runs: Runs, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs.finished, tmp_path / "out"))
    flip(out / "student" / WEIGHTS)

    done = runs.again(out, "--no-check", "--quiet")
    assert done.returncode == 0
    assert "--no-check: the contents of" in done.stderr


@pytest.mark.parametrize("file", ["model", "text"])
def test_what_the_run_was_given_is_compared_too(
    runs: Runs, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, file: str
) -> None:
    out = Path(shutil.copytree(runs.finished, tmp_path / "out"))
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
