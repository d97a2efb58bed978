"""Spread windows against all windows of the training part, tokenised in one piece by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.core.errors import UsageError
from compressor.data import calibration, hub, sources
from compressor.data.calibration import calibration_windows, spread
from compressor.recipe.recipe import Calibration
from tests.unit.data.texts import write_rows

SEQ_LEN = 32


@given(total=st.integers(1, 5000), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_numbers_are_spread_evenly_and_in_order(total: int, share: float, seed: int) -> None:
    size = max(1, round(total * share))
    numbers = spread(total, size, seed=seed)
    edges = np.arange(size + 1) * total / size

    assert len(set(numbers.tolist())) == size
    assert sorted(numbers.tolist()) == numbers.tolist()
    # One in every stratum of equal size.
    assert all(
        np.floor(low) <= number <= high for low, number, high in zip(edges, numbers, edges[1:], strict=False)
    )
    assert size < total or numbers.tolist() == list(range(total))


def test_every_window_is_as_likely_as_another() -> None:
    counts = np.zeros(10)
    for seed in range(3000):
        counts[spread(10, 3, seed=seed)] += 1

    assert counts == pytest.approx(900, rel=0.15)


def all_windows(text: str, tokenizer: Any) -> Any:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return np.asarray(ids[: len(ids) // SEQ_LEN * SEQ_LEN]).reshape(-1, SEQ_LEN)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_windows_are_those_of_the_whole_training_part(
    make_text: Any, tmp_path: Path, tiny_tokenizer: Any, kind: str
) -> None:
    path = make_text(num_words=3000)
    lines = path.read_text().splitlines(keepends=True)
    whole = "".join(lines)
    train = whole[: whole.index("\n", round(len(whole) * 0.9)) + 1]
    if kind == "jsonl":
        path = write_rows(tmp_path / "x.jsonl", *({"text": line} for line in lines))
        kept = lines[: len(lines) - round(len(lines) * 0.1)]
        train = "".join(line + tiny_tokenizer.eos_token for line in kept)
    every = all_windows(train, tiny_tokenizer)
    how = Calibration(data=str(path), size=20, seq_len=SEQ_LEN)
    found = calibration_windows(how, tiny_tokenizer, seed=3)
    chosen = spread(len(every), 20, seed=3)

    assert found.ids.tolist() == every[chosen].tolist()
    assert found.record["of_windows"] == len(every)
    assert [found.record["first_window"], found.record["last_window"]] == [chosen[0], chosen[-1]]
    assert found.shortage(how) is None
    again = calibration_windows(how, tiny_tokenizer, seed=4)
    assert again.ids.tolist() != found.ids.tolist()


def test_a_short_text_gives_all_its_windows(make_text: Any, tiny_tokenizer: Any) -> None:
    path = make_text(num_words=100)
    how = Calibration(data=str(path), size=1000, seq_len=SEQ_LEN)
    found = calibration_windows(how, tiny_tokenizer, seed=0)
    text = path.read_text()
    train = text[: text.index("\n", round(len(text) * 0.9)) + 1]

    assert found.ids.tolist() == all_windows(train, tiny_tokenizer).tolist()
    assert "not 1000" in str(found.shortage(how))
    with pytest.raises(UsageError, match="shorter than one sequence"):
        calibration_windows(Calibration(data=str(path), seq_len=4096), tiny_tokenizer, seed=0)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_large_text_is_thinned_evenly(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(calibration, "MIN_CHARACTERS", 20_000)
    monkeypatch.setattr(calibration, "_MIN_DOCUMENTS", 9)
    path = tmp_path / f"x.{kind}"
    lines = [f"the {number:05} old river keeps one letter" for number in range(20_000)]
    rows = [json.dumps({"text": line}) if kind == "jsonl" else line for line in lines]
    path.write_text("\n".join(rows) + "\n")
    how = Calibration(data=str(path), size=16, seq_len=3 * SEQ_LEN)
    found = calibration_windows(how, tiny_tokenizer, seed=0)
    numbers = [
        next(int(word) for word in tiny_tokenizer.decode(window).split() if word.isdigit() and len(word) == 5)
        for window in found.ids
    ]

    assert found.record["every_nth_document"] >= 4
    assert len(found.ids) == 16
    assert numbers == sorted(numbers)
    assert numbers[0] < 18_000 / 6
    assert 18_000 * 5 / 6 < numbers[-1] < 18_000
    # Where thinning leaves too little, less is thinned.
    monkeypatch.setattr(calibration, "_CHARACTERS_PER_TOKEN", 1)
    assert len(calibration_windows(how.model_copy(update={"size": 300}), tiny_tokenizer, seed=0).ids) == 300


def test_a_hub_data_set_is_sampled_over_its_first_documents(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local file stands in for the hub."""
    texts = [f"document {number} of the old river" for number in range(500)]
    file = write_rows(tmp_path / "rows.jsonl", *({"text": text} for text in ["", *texts]))
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_ids, **_how: load("json", data_files=str(file), streaming=True)
    )
    monkeypatch.setattr(hub, "hub_revision", lambda _spec: "r1")
    monkeypatch.setattr(sources, "hub_revision", lambda _spec: "r1")
    monkeypatch.setattr(sources, "HELD_OUT_HUB_DOCUMENTS", 11)
    how = Calibration(data="someone/text", size=5, seq_len=SEQ_LEN, documents=100)
    found = calibration_windows(how, tiny_tokenizer, seed=0)
    read = texts[10 : 10 + found.record["num_documents"]]
    every = all_windows("".join(text + tiny_tokenizer.eos_token for text in read), tiny_tokenizer)

    assert 100 <= found.record["num_documents"] < 100 + calibration.GROUP_DOCUMENTS
    assert found.record["revision"] == "r1"
    assert found.ids.tolist() == every[spread(len(every), 5, seed=0)].tolist()
    # More documents where so many do not fill the windows.
    more = how.model_copy(update={"size": 70, "documents": 1})
    assert len(calibration_windows(more, tiny_tokenizer, seed=0).ids) == 70
