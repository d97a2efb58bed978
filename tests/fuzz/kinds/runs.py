"""Finished runs that somebody edited: checked, judged, cleaned, and described again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from compressor.core.errors import CompressExportError
from compressor.runs.artifact import ARTIFACT_FILE, sealed, sha256_of_file
from tests.conftest import pseudo_text
from tests.fuzz.commands import called, commanded
from tests.fuzz.kind import Finished, Kind, Seed, Target, Workspace, files_of
from tests.fuzz.kinds.recipes import mutated_yaml
from tests.fuzz.mutations import mutated_json, mutated_text
from tests.fuzz.pages import problems_of_pages
from tests.integration.command import succeed_here
from tests.records import record_again
from tests.tiny_models import make_model, save_checkpoint

_SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
_SUMS = "SHA256SUMS"
_UNREADABLE = (
    CompressExportError,
    ValueError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


def run_seeds(scratch: Path) -> list[Seed]:
    """A run of every stage that takes no training, with gates, beside its teacher."""
    text = scratch / "text.txt"
    text.write_text(pseudo_text(1500, 0), encoding="utf-8")
    teacher = save_checkpoint(scratch / "teacher", make_model(**_SIZES).bfloat16())
    tree = {
        "model": str(teacher),
        "prune": {"shape": {"intermediate_size": 48}},
        "calibration": {"data": str(text), "size": 4, "seq_len": 32},
        "repair": {"method": "off"},
        "distill": {"data": str(text), "tokens": 64, "context_length": 32, "batch_size": 1},
        "export": {"formats": ["huggingface"]},
        "evaluate": {"seq_len": 32, "size": 2},
        "gates": {"perplexity_ratio": 100.0},
        "bench": {"runtime": "none"},
    }
    recipe = scratch / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    succeed_here("run", "--config", recipe, "-o", scratch / "run")
    files = files_of(scratch / "run")
    records = [name for name in files if name.endswith(".json") and "tokenizer" not in name]
    targets = [Target(file=name, change=mutated_json) for name in records]
    texts = [name for name in files if name in (_SUMS, "README.md")]
    targets += [Target(file=name, change=mutated_text) for name in texts]
    targets.append(Target(file="recipe.yaml", change=mutated_yaml))
    return [Seed(files=files, targets=tuple(targets), repair=repair)]


def repair(directory: Path) -> None:
    """Make seals and sums agree with what is there, as far as the records still can be read."""
    for record in sorted(directory.rglob(ARTIFACT_FILE)):
        with contextlib.suppress(*_UNREADABLE):
            _seal(record)
            record_again(record.parent)
    with contextlib.suppress(*_UNREADABLE):
        _repair_manifest(directory / "manifest.json")
    with contextlib.suppress(*_UNREADABLE):
        lines = (directory / _SUMS).read_text(encoding="utf-8").splitlines()
        names = [line.partition("  ")[2] for line in lines]
        sums = [(name, sha256_of_file(directory / name)) for name in names if (directory / name).is_file()]
        text = "".join(f"{digest}  {name}\n" for name, digest in sums)
        (directory / _SUMS).write_text(text, encoding="utf-8")


def _seal(file: Path) -> None:
    record = json.loads(file.read_text(encoding="utf-8"))
    record.pop("seal", None)
    file.write_text(json.dumps(sealed(record)), encoding="utf-8")


def _repair_manifest(file: Path) -> None:
    record = json.loads(file.read_text(encoding="utf-8"))
    for name in record["files"]:
        if (file.parent / name).is_file():
            record["files"][name] = sha256_of_file(file.parent / name)
    file.write_text(json.dumps(record), encoding="utf-8")
    _seal(file)


def read_run(workspace: Workspace, way: int) -> Iterator[Finished]:
    from compressor.pipeline.report import write_model_card
    from compressor.pipeline.summary import fitting, read_summary

    run = workspace.input
    if way % 4 == 0:
        yield commanded("verify", run)
    elif way % 4 == 1:
        yield commanded("gate", run)
    elif way % 4 == 2:
        yield commanded("clean", run)
    else:
        workspace.out.mkdir()

        def describe() -> None:
            summary = read_summary(run)
            with fitting(run):
                write_model_card(workspace.out, summary)

        yield called(describe)


RUN_KINDS = (
    Kind(
        name="run",
        seeds=run_seeds,
        read=read_run,
        writes_input=True,
        check=lambda workspace: problems_of_pages(workspace.run),
    ),
)
