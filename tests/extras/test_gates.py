"""A task folder made of local text: its items, and what the real model chooses of them; no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compressor.models.load import load_model
from compressor.models.source import open_checkpoint, resolve_source
from compressor.models.tokenizer import load_tokenizer
from tests.assets import Assets
from tests.extras.local_tasks import CHOSEN, NUM_CHOICES, READ, write_continuations
from tests.integration.command import succeed_here

pytest.importorskip("lm_eval")
NUM_ITEMS = 6


@pytest.fixture(scope="module")
def folder(real_assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks") / "own"
    return write_continuations(directory, real_assets.texts["wiki"], num_items=NUM_ITEMS)


@pytest.fixture(scope="module")
def model(real_assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = resolve_source(str(real_assets.gguf))
    return open_checkpoint(source, tmp_path_factory.mktemp("model"), dtype="float32").path


def items(folder: Path, split: str) -> list[dict[str, object]]:
    lines = (folder / f"continuation-{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_right_ending_and_no_other_follows_in_the_held_out_part(
    folder: Path, real_assets: Assets
) -> None:
    whole = real_assets.texts["wiki"].read_text(encoding="utf-8")
    held_out = " ".join(whole[int(0.9 * len(whole)) :].split())
    for split in ("train", "test"):
        assert len(items(folder, split)) == NUM_ITEMS
        for item in items(folder, split):
            choices = item["choices"]
            assert isinstance(choices, list)
            assert len(str(item["question"]).split()) == READ
            assert {len(choice.split()) for choice in choices} == {CHOSEN}
            follows = [f"{item['question']}{choice}" in held_out for choice in choices]
            assert follows == [number == item["answer"] for number in range(NUM_CHOICES)]
    questions = [item["question"] for split in ("train", "test") for item in items(folder, split)]
    assert len(set(questions)) == len(questions)


def test_scores_of_the_real_model_are_those_of_its_log_likelihoods(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    """Token by token with the model alone, in float32, against lm-eval's `acc` and `acc_norm`."""
    words = ("--tasks", "continuation:0", "--task-dir", folder, "--dtype", "float32")
    record = succeed_here("evaluate", model, *words, "-o", tmp_path / "scores")
    (found,) = record["models"].values()
    tokenizer, loaded = load_tokenizer(model), load_model(model, dtype="float32", device="cpu")
    plain, normed = [], []
    for item in items(folder, "test"):
        context = len(tokenizer(item["question"]).input_ids)
        sums, shares = [], []
        for choice in item["choices"]:  # type: ignore[attr-defined]
            ids = torch.tensor([tokenizer(f"{item['question']}{choice}").input_ids])
            with torch.no_grad():
                log_p = loaded(ids).logits.double().log_softmax(-1)[0]
            places = range(context, ids.shape[1])
            sums.append(sum(float(log_p[place - 1, ids[0, place]]) for place in places))
            shares.append(sums[-1] / len(choice))
        plain.append(max(range(NUM_CHOICES), key=sums.__getitem__) == item["answer"])
        normed.append(max(range(NUM_CHOICES), key=shares.__getitem__) == item["answer"])
    scores = found["tasks"]["continuation"]
    assert scores["acc,none"] == pytest.approx(sum(plain) / NUM_ITEMS)
    assert scores["acc_norm,none"] == pytest.approx(sum(normed) / NUM_ITEMS)
    assert sum(plain) > NUM_ITEMS / NUM_CHOICES
