"""Stored teacher logits: the same bytes after a kill, read by content, and clear errors for what is wrong."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.choices.losses import LOSSES
from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.distillation.criterion import LossConfig
from compressor.distillation.logits_stage import LOGITS, write_logits
from compressor.distillation.module import DistillationModule
from compressor.distillation.states import Body
from compressor.distillation.stored_logits import (
    INDEX_FILE,
    LogitsHeader,
    StoredLogits,
    digest_of,
    is_whole,
    shard_name,
)
from compressor.recipe.recipe import Distill
from compressor.runs.stage import execute
from compressor.training.batches import collate
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint
from tests.unit.distillation.gradients import assert_same_gradients
from tests.unit.distillation.test_stage import as_source, make_context

SEQ_LEN, NUM_WINDOWS, TOP_K = 12, 5, 6
FITTING: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "seq_len": SEQ_LEN,
    "tokenizer": "tokenizer",
    "isolates_documents": False,
    "top_k": None,
}


def make_windows() -> list[dict[str, Any]]:
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (NUM_WINDOWS, SEQ_LEN))
    return [{"input_ids": row} for row in ids]


def header(**changes: Any) -> LogitsHeader:
    return LogitsHeader(**{**FITTING, "top_k": TOP_K, "teacher": "teacher", **changes})


def write(out_dir: Path, **changes: Any) -> StoredLogits:
    windows = make_windows()
    distinct = {digest_of(window["input_ids"]): index for index, window in enumerate(windows)}
    out_dir.mkdir(exist_ok=True)
    how = {"windows_per_shard": 2, "micro_batch_size": 2, "tick": lambda **_done: None}
    write_logits(Body(make_model(seed=2)), windows, distinct, out_dir, header(**changes), **how)
    return StoredLogits(out_dir)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_what_is_stored_are_the_teachers_top_tokens(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    assert len(store) == NUM_WINDOWS
    teacher = make_model(seed=2)
    for window in make_windows():
        found = store.window(window["input_ids"])
        logits = teacher(torch.from_numpy(window["input_ids"])[None]).logits[0]
        values, ids = logits.log_softmax(-1).topk(TOP_K)
        assert found.ids.tolist() == ids.tolist()
        assert found.logprobs.dtype == np.float16
        np.testing.assert_allclose(found.logprobs, values.numpy(), rtol=1e-3, atol=1e-4)
        rest = logits.double().softmax(-1).scatter(-1, ids, 0).sum(-1)
        np.testing.assert_allclose(found.tail_logprobs, rest.log().numpy(), rtol=1e-3)


def as_version_one(directory: Path) -> StoredLogits:
    """The same store as it was written before the probability of all other tokens was part of it."""
    index = json.loads((directory / INDEX_FILE).read_text())
    for entry in index["shards"]:
        path = directory / entry["file"]
        with np.load(path) as shard:
            arrays = {name: shard[name] for name in shard.files if not name.endswith("tail_logprobs")}
        np.savez_compressed(path, **arrays)
        entry["bytes"] = path.stat().st_size
    (directory / INDEX_FILE).write_text(
        json.dumps(index | {"schema": "compress-export/teacher-logits/1"}), encoding="utf-8"
    )
    return StoredLogits(directory)


def test_a_store_of_version_one_is_read(tmp_path: Path) -> None:
    new = write(tmp_path / "store")
    windows = make_windows()
    expected = [new.window(window["input_ids"]) for window in windows]
    old = as_version_one(tmp_path / "store")
    for window, stored in zip(windows, expected, strict=True):
        found = old.window(window["input_ids"])
        assert np.array_equal(found.ids, stored.ids)
        np.testing.assert_allclose(np.exp(found.tail_logprobs), np.exp(stored.tail_logprobs), atol=2e-3)
    new.require_tails(LOSSES["reverse-kl"])
    old.require_tails(LOSSES["forward-kl"])
    with pytest.raises(UsageError, match="probability of all tokens that are not stored"):
        old.require_tails(LOSSES["reverse-kl"])


def test_the_whole_vocabulary_leaves_nothing_to_other_tokens(tmp_path: Path) -> None:
    store = write(tmp_path / "store", top_k=VOCAB_SIZE)
    window = make_windows()[0]
    assert np.isneginf(store.window(window["input_ids"]).tail_logprobs).all()
    assert "teacher_tail_logprobs" not in store.complete(window)
    as_version_one(tmp_path / "store").require_tails(LOSSES["reverse-kl"])


@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl"])
def test_training_on_a_few_stored_tokens_equals_training_on_the_teachers_buckets(
    tmp_path: Path, loss: str
) -> None:
    store = write(tmp_path / "store", top_k=8)
    batch = collate([{**store.complete(window), "domain_id": 0} for window in make_windows()[:3]])
    student = make_model(seed=1, hidden_size=32).requires_grad_(requires_grad=True)
    beside = DistillationModule(
        student, make_model(seed=2), LossConfig(loss=loss, top_k=8, top_k_tail="bucket")
    )(batch["input_ids"])
    stored = DistillationModule(student, None, LossConfig(loss=loss))(**batch)
    torch.testing.assert_close(stored["loss"], beside["loss"], rtol=2e-3, atol=1e-3)
    assert_same_gradients(stored["loss"], beside["loss"], student.parameters(), tolerance=1e-2)


def test_killed_and_continued_leaves_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    write(tmp_path / "parts")
    (tmp_path / "parts" / INDEX_FILE).unlink()
    (tmp_path / "parts" / shard_name(1)).rename(tmp_path / "parts" / f"{shard_name(1)}.tmp")
    (tmp_path / "parts" / shard_name(2)).unlink()
    kept = (tmp_path / "parts" / shard_name(0)).stat().st_mtime_ns
    write(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert (tmp_path / "parts" / shard_name(0)).stat().st_mtime_ns == kept


def test_training_on_the_whole_vocabulary_equals_training_on_the_teacher(tmp_path: Path) -> None:
    store = write(tmp_path / "store", top_k=VOCAB_SIZE)
    batch = collate([{**store.complete(window), "domain_id": 0} for window in make_windows()[:3]])
    student = make_model(seed=1, hidden_size=32).requires_grad_(requires_grad=True)
    beside = DistillationModule(student, make_model(seed=2))(batch["input_ids"])
    stored = DistillationModule(student, None)(**batch)
    torch.testing.assert_close(stored["loss"], beside["loss"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(stored["window_losses"], beside["window_losses"], rtol=1e-3, atol=1e-2)
    assert_same_gradients(stored["loss"], beside["loss"], student.parameters(), tolerance=5e-3)


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_a_damaged_shard_is_an_error(tmp_path: Path, damage: str) -> None:
    store = write(tmp_path / "store")
    window = make_windows()[2]["input_ids"]
    path = tmp_path / "store" / shard_name(1)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[200] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(VerificationError, match="damaged"):
            store.window(window)
        return
    path.unlink() if damage == "missing" else path.write_bytes(content[:-1])
    with pytest.raises(VerificationError, match="missing or damaged"):
        StoredLogits(tmp_path / "store")


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "compress-export/teacher-logits/1"}'])
def test_a_corrupt_index_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(VerificationError, match="index"):
        StoredLogits(tmp_path)


def test_a_directory_without_index_and_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no stored teacher logits"):
        StoredLogits(tmp_path)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"schema": "compress-export/teacher-logits/0"}))
    with pytest.raises(UsageError, match="another version"):
        StoredLogits(tmp_path)


def test_an_unknown_window_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    with pytest.raises(UsageError, match="not among the stored"):
        store.window(make_windows()[0]["input_ids"] + 1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vocab_size": VOCAB_SIZE + 1}, UnsupportedError, "different vocabulary"),
        ({"tokenizer": "other"}, UnsupportedError, "different vocabulary"),
        ({"seq_len": SEQ_LEN * 2}, UsageError, "context_length"),
        ({"isolates_documents": True}, UsageError, "intra_document_masking"),
        ({"top_k": TOP_K + 1}, UsageError, "top_k"),
    ],
)
def test_a_store_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    store = write(tmp_path / "store")
    store.require(**{**FITTING, "top_k": TOP_K})
    with pytest.raises(error, match=message):
        store.require(**{**FITTING, **changes})


def test_the_stage_stores_every_training_window(tmp_path: Path) -> None:
    source = as_source(save_checkpoint(tmp_path / "teacher", make_model(seed=2)))
    (tmp_path / "text.txt").write_text("the north wind and the sun argued about who was stronger\n" * 20)
    config = Distill(data=str(tmp_path / "text.txt"), tokens=16 * 40, context_length=16, top_k=8)
    artifact = execute(LOGITS, config, source, tmp_path / "store", make_context(None)).artifact
    store = StoredLogits(tmp_path / "store")
    assert artifact.details["windows"] == len(store) > 0
    assert artifact.details["bytes"] == (tmp_path / "store" / shard_name(0)).stat().st_size
    assert store.header.teacher == source.fingerprint
    assert not (tmp_path / "store" / "tokens").exists()
    assert store.header.top_k == 8


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "of other windows"])
def test_a_damaged_shard_of_an_unfinished_store_is_written_again(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "whole")
    write(tmp_path / "parts")
    shards = sorted((tmp_path / "parts").glob("logits-*.npz"))
    data = shards[0].read_bytes()
    flipped = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    damaged = {"flipped": flipped, "cut": data[:-9], "empty": b"", "of other windows": shards[1].read_bytes()}
    shards[0].write_bytes(damaged[damage])

    write(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_fault_of_any_bit_of_a_shard_is_no_more_than_damage(tmp_path: Path) -> None:
    """Flags that say "encrypted", unknown methods and impossible offsets are faults of single bits too."""
    write(tmp_path / "store")
    shard = tmp_path / "store" / shard_name(1)
    data = shard.read_bytes()
    members = json.loads((tmp_path / "store" / INDEX_FILE).read_text())["shards"][1]["windows"]
    window = next(row for row in make_windows() if digest_of(row["input_ids"]) == members[0])
    assert is_whole(shard, members)
    directory = data.index(b"PK\x01\x02")
    headers = [*range(6, 10), *range(directory + 6, directory + 12), *range(len(data) - 22, len(data))]
    num_damaged = 0
    for index, bit in itertools.product(headers, range(8)):
        shard.write_bytes(data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :])
        num_damaged += not is_whole(shard, members)
        with suppress(VerificationError):
            StoredLogits(tmp_path / "store").window(window["input_ids"])
    assert num_damaged > len(headers)  # the rest are fields that no reader looks at
