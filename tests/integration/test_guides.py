"""Every command of README.md and docs/ that is not marked as not run: on a tiny model, page by page.

Names of the pages stand for tiny things: MODEL, STUDENT, text.jsonl, and directories that an earlier command
of another page would have made. Counts of tokens and sequences are replaced by small ones.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from tests.chat_models import write_chats
from tests.guides import GUIDES, Command, commands_of
from tests.integration.command import command_here, succeed_here
from tests.performance.kept import ROOT
from tests.tiny_models import make_model, save_checkpoint

PAGES = [page for page in GUIDES if any(command.not_run is None for command in commands_of(page))]
CALIBRATION = {"--calib-data": "text.jsonl", "--calib-size": "4", "--calib-seq-len": "32"}
TRAINING = {"--context-length": "32", "--train-batch-size": "4"}
MEASURED = {"--isl-osl": "8/4", "--batch-size": "1", "--max-pairs": "5", "--bench-precisions": "fp32"}
UNMEASURED = {"--runtime": "none", "--formats": "huggingface,onnx-int4"}
EVALUATION = {"--eval-seq-len": "32", "--eval-size": "4"}
# Options that a command gets unless it has them.
ADDED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("prune", "reconstruct", "sparsify", "quantize"), CALIBRATION),
    **dict.fromkeys(("distill", "correct-teacher"), TRAINING),
    "cache-logits": {"--context-length": "32"},
    "generate": {"--max-new-tokens": "16"},
    "evaluate": {"--seq-len": "32", "--size": "4"},
    "search": {**CALIBRATION, **TRAINING, **EVALUATION, "--tokens": "512"},
    "run": {**CALIBRATION, **TRAINING, **EVALUATION, "--tokens": "512"},
}
SMALL = {
    "--tokens": "512",
    "--mask-tokens": "512",
    "--top-k": "16",
    "--search": "2",
    "--candidates": "2",
    "--repair-steps": "2",
    "--isl-osl": "8/4",
    "--batch-size": "1",
}
SHAPES = {
    "num_hidden_layers=20": "num_hidden_layers=4",
    "num_key_value_heads=2,num_attention_heads=6": "num_key_value_heads=1,num_attention_heads=2",
}
# A tiny model of random weights is judged, and may fail.
JUDGED = (0, 6, 7)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """What the pages name without making it: models, texts, and a student with its FP8 checkpoint."""
    root = tmp_path_factory.mktemp("guides")
    lines = tiny_text.read_text(encoding="utf-8").splitlines()
    for name in ("text.jsonl", "web.jsonl"):
        (root / name).write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    write_chats(root / "chats.jsonl")
    pa.parquet.write_table(pa.table({"text": lines}), root / "code.parquet")
    save_checkpoint(root / "MODEL", make_model(num_hidden_layers=6, intermediate_size=512))
    calibration = ("--calib-data", root / "text.jsonl", "--calib-size", 4, "--calib-seq-len", 32)
    size = ("--shape", "num_hidden_layers=4,intermediate_size=448")
    succeed_here("prune", root / "MODEL", *size, *calibration, "-o", root / "pruned")
    succeed_here("quantize", root / "pruned", "--fp8", *calibration, "-o", root / "quantized")
    for name in ("STUDENT", "student"):
        student = make_model(num_hidden_layers=4, intermediate_size=512, seed=1)
        save_checkpoint(root / name, student.to(torch.bfloat16))
    shutil.copytree(ROOT / "recipes", root / "recipes")
    return root


def small(command: Command) -> list[str]:
    """The words of a command, for a tiny model."""
    words = [SHAPES.get(word, word) for word in command.words]
    name = words[0]
    for index, word in enumerate(words[:-1]):
        if name != "plan" and word in SMALL:
            words[index + 1] = "64" if name == "generate" else SMALL[word]
    given = [option for option in options_to_add(name, " ".join(words)).items() if option[0] not in words]
    return [*words, *(word for option in given for word in option)]


def options_to_add(name: str, joined: str) -> dict[str, str]:
    """What keeps a command short, where it does not say it itself."""
    if "--config" in joined:
        return {}
    added = dict(ADDED.get(name, {}))
    if name == "evaluate" and "--data" not in joined:
        added = {}  # tasks and chats have no sequences of a text
    elif "--importance learned-masks" in joined:
        added = {"--context-length": "32", "--mask-batch-size": "4"}
    elif name == "sparsify" and "--teacher" in joined:
        added = dict(TRAINING)  # a model that is sparse already is not calibrated again
    if name == "run":
        added |= MEASURED if "speedup" in joined else UNMEASURED
    return added


def bring(words: list[str], made: Path) -> None:
    """Copy what a command names, and no earlier one of its page has made, into the current directory."""
    for word in words[1:]:
        for name in re.findall(r"[\w.-]+", word):
            if (made / name).is_dir() and not Path(name).exists():
                shutil.copytree(made / name, name)
            elif (made / name).is_file() and not Path(name).exists():
                shutil.copy(made / name, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_guide_run(
    page: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in commands_of(page):
        if command.not_run is not None:
            continue
        words = small(command)
        bring(words, made)
        out = Path(words[words.index("-o") + 1]) if "-o" in words else None
        if out is not None and out.exists() and words[0] != "run":
            shutil.rmtree(out)  # the same name for another example
        done = command_here(*words)
        allowed = JUDGED if "gate" in " ".join(words) else (0,)
        assert done.returncode in allowed, f"{page.name}: {command.line}\n{done.stderr[-3000:]}"
        assert out is None or out.is_dir()
