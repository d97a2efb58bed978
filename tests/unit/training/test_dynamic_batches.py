"""Dynamic batch loading: updates computed by hand, and beside a real training, which it survives."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from compressor.core.errors import UsageError, VerificationError
from compressor.data.mixing import WindowStream
from compressor.recipe.recipe import Domain
from compressor.training.dynamic_batches import (
    STATE_FILE,
    DynamicBatchLoading,
    Variant,
    held_out_windows,
    updated_weights,
)
from tests.short_training import stream_of
from tests.tiny_models import make_model

SEQ_LEN = 16
NUM_TOKENS = 64 * SEQ_LEN
EASY_VOCABULARY, HARD_VOCABULARY = 4, 300
LN2, LN3, SHARES = math.log(2), math.log(3), np.asarray([0.5, 0.3, 0.2])
values = st.lists(st.floats(0.01, 12), min_size=4, max_size=4)


def test_paper_by_hand() -> None:
    """Excesses ln 3, ln 2 and a shortfall: factors 3, 2 and 1 on 0.5, 0.3, 0.2, sum 2.3."""
    updated = updated_weights(SHARES, [1 + LN3, 2 + LN2, 1.0], [1.0, 2.0, 1.5], variant="clipped")

    assert updated.tolist() == pytest.approx([1.5 / 2.3, 0.6 / 2.3, 0.2 / 2.3], rel=1e-12)


def test_code_by_hand() -> None:
    """The shortfall ln 2 halves: 1.5, 0.6, 0.1 of 2.2; then 1e-4 of it is spread evenly."""
    updated = updated_weights(SHARES, [1 + LN3, 2 + LN2, 1.0], [1.0, 2.0, 1 + LN2], variant="unclipped")
    expected = [0.9999 * share / 2.2 + 1e-4 / 3 for share in (1.5, 0.6, 0.1)]

    assert updated.tolist() == pytest.approx(expected, rel=1e-12)


def test_only_the_code_lets_shortfalls_lower_a_share() -> None:
    weights, losses, references = np.asarray([0.5, 0.5]), [1.0, 1.0], [1.0, 2.0]

    assert updated_weights(weights, losses, references, variant="clipped").tolist() == [0.5, 0.5]
    assert updated_weights(weights, losses, references, variant="unclipped")[1] < 0.3


@given(weights=values, losses=values, references=values, variant=st.sampled_from(["clipped", "unclipped"]))
def test_shares_sum_to_one_and_a_common_offset_changes_nothing(
    weights: list[float], losses: list[float], references: list[float], variant: str
) -> None:
    shares = np.asarray(weights) / sum(weights)
    updated = updated_weights(shares, losses, references, variant=variant)

    assert updated.sum() == pytest.approx(1)
    assert (updated > 0).all()
    shifted = [[value + 1 for value in row] for row in (losses, references)]
    assert updated_weights(shares, *shifted, variant=variant) == pytest.approx(updated)


def test_a_huge_excess_does_not_overflow() -> None:
    updated = updated_weights(np.asarray([0.5, 0.5]), [2000.0, 1.0], [1.0, 1.0], variant="unclipped")

    assert updated.tolist() == pytest.approx([1 - 5e-5, 5e-5])


def make_stream(directory: Path, vocabularies: tuple[int, ...]) -> WindowStream:
    """Domains of random tokens; the more tokens to choose from, the harder."""
    random = [np.random.default_rng(i).integers(0, size, NUM_TOKENS) for i, size in enumerate(vocabularies)]
    return stream_of(directory, *random, seq_len=SEQ_LEN)


def cross_entropy(model: Any, windows: list[Any]) -> torch.Tensor:
    ids, labels = (
        torch.from_numpy(np.stack([window[key] for window in windows])) for key in ("input_ids", "labels")
    )
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def final_updates(directory: Path, vocabularies: tuple[int, ...], variant: Variant) -> DynamicBatchLoading:
    """Train a tiny student for 24 steps of 4 windows with an update every 8."""
    stream = make_stream(directory, vocabularies)
    model = make_model(num_hidden_layers=1, hidden_size=32)
    model.requires_grad_(requires_grad=True).train()
    held_out = []
    for index, size in enumerate(vocabularies):
        tokens = np.random.default_rng(100 + index).integers(0, size, (4, SEQ_LEN + 1))
        held_out.append([{"input_ids": row[:-1], "labels": row[1:]} for row in tokens])

    @torch.no_grad()
    def evaluate(domain: int) -> float:
        return cross_entropy(model, held_out[domain]).item()

    loading = DynamicBatchLoading(
        stream, evaluate, evaluate, references=[1.0, 1.0], variant=variant, interval_steps=8
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, 25):
        cross_entropy(model, stream.step_windows(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
        loading.after_step(step)
    return loading


@pytest.mark.parametrize("variant", ["clipped", "unclipped"])
def test_a_domain_made_harder_gets_a_rising_share(tmp_path: Path, variant: Variant) -> None:
    updates = final_updates(tmp_path, (EASY_VOCABULARY, HARD_VOCABULARY), variant).updates
    shares = [0.5, *(update.weights[1] for update in updates)]

    assert [update.step for update in updates] == [8, 16, 24]
    assert all(after > before for before, after in itertools.pairwise(shares))
    assert shares[-1] > 0.9
    assert all(update.losses[1] > update.losses[0] for update in updates)


def test_equally_hard_domains_keep_their_shares(tmp_path: Path) -> None:
    updates = final_updates(tmp_path, (EASY_VOCABULARY, EASY_VOCABULARY), "unclipped").updates

    assert all(abs(update.weights[1] - 0.5) < 0.1 for update in updates)


def make_loading(
    stream: WindowStream, losses: list[float], references: list[float | None], **changes: Any
) -> DynamicBatchLoading:
    settings: dict[str, Any] = {"variant": "clipped", "interval_steps": 2, **changes}
    return DynamicBatchLoading(
        stream, lambda index: losses[index], lambda index: 0.5 + index, references=references, **settings
    )


def test_the_course_is_the_published_rule_applied_at_every_interval(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, (4, 4))
    loading = make_loading(stream, [2.0, 3.0], [1.5, None])
    for step in range(1, 6):
        loading.after_step(step)
    first = updated_weights(np.asarray([0.5, 0.5]), [2.0, 3.0], [1.5, 1.5], variant="clipped")
    second = updated_weights(first, [2.0, 3.0], [1.5, 1.5], variant="clipped")

    assert loading.report()["reference_losses"] == (1.5, 1.5)  # given, and the teacher's
    assert [update.step for update in loading.updates] == [2, 4]
    assert loading.updates[0].weights == pytest.approx(first)
    assert loading.updates[1].weights == pytest.approx(second)
    assert stream.weights.tolist() == list(loading.updates[1].weights)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def run(steps: range, stream: WindowStream, loading: DynamicBatchLoading) -> None:
        for step in steps:
            stream.step_windows(3)
            loading.after_step(step)

    streams = [make_stream(tmp_path, (4, 4)) for _ in range(3)]
    whole, first, resumed = (make_loading(stream, [2.0, 3.0], [None, None]) for stream in streams)
    run(range(1, 8), streams[0], whole)
    run(range(1, 4), streams[1], first)
    first.save(tmp_path)
    streams[2].load_state_dict(json.loads(json.dumps(streams[1].state_dict())))
    resumed._evaluate_teacher = lambda _index: pytest.fail("the teacher is asked once")
    resumed.load(tmp_path)
    run(range(4, 8), streams[2], resumed)

    assert resumed.report() == whole.report()
    assert streams[2].state_dict() == streams[0].state_dict()


def test_a_checkpoint_without_dynamic_weights(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no dynamic weights") as caught:
        make_loading(make_stream(tmp_path, (4,)), [1.0], [1.0]).load(tmp_path)
    assert STATE_FILE in str(caught.value.where)


@pytest.mark.parametrize(
    ("loss", "reference", "message"),
    [(float("nan"), 1.0, "student's loss"), (float("inf"), 1.0, "student's"), (1.0, None, "teacher's loss")],
)
def test_a_loss_that_is_not_finite_stops(
    tmp_path: Path, loss: float, reference: float | None, message: str
) -> None:
    loading = make_loading(make_stream(tmp_path, (4,)), [loss], [reference], interval_steps=1)
    loading._evaluate_teacher = lambda _index: float("nan")

    with pytest.raises(VerificationError, match=f"{message}.* not finite") as caught:
        loading.after_step(1)
    assert caught.value.where == "domain d0"


def test_a_domain_without_held_out_text_is_named(make_text: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    single = tmp_path / "single.txt"
    single.write_text("one line and nothing behind it")
    domains = [Domain(name="long", data=str(make_text())), Domain(name="single", data=str(single))]

    assert held_out_windows(domains[:1], tiny_tokenizer, size=3, seq_len=16)[0].shape == (3, 16)
    with pytest.raises(UsageError, match="need held-out text") as caught:
        held_out_windows(domains, tiny_tokenizer, size=3, seq_len=16)
    assert str(caught.value.where).startswith("domain single")
