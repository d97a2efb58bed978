"""Dynamic batch loading beside a real training: shares follow the difficulty, and survive a resume."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from compressor.core.errors import UsageError, VerificationError
from compressor.data.dynamic_weights import Variant, updated_weights
from compressor.data.mixing import DomainWindows, WindowStream
from compressor.data.packing import TokenWindows
from compressor.recipe.recipe import Domain
from compressor.training.dynamic_batches import STATE_FILE, DynamicBatchLoading, held_out_windows
from tests.tiny_models import make_model

SEQ_LEN = 16
NUM_TOKENS = 64 * SEQ_LEN
EASY_VOCABULARY, HARD_VOCABULARY = 4, 300


def make_stream(directory: Path, vocabularies: tuple[int, ...]) -> WindowStream:
    """Domains of random tokens; the more tokens to choose from, the harder."""
    domains = []
    for index, size in enumerate(vocabularies):
        path = directory / f"{index}.bin"
        np.random.default_rng(index).integers(0, size, NUM_TOKENS).astype("<u4").tofile(path)
        domains.append(DomainWindows(name=f"d{index}", windows=TokenWindows(path, seq_len=SEQ_LEN)))
    return WindowStream(domains, [1.0] * len(vocabularies), seed=0)


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

    assert loading.report()["reference_losses"] == [1.5, 1.5]  # given, and the teacher's
    assert [update.step for update in loading.updates] == [2, 4]
    assert loading.updates[0].weights == pytest.approx(first)
    assert loading.updates[1].weights == pytest.approx(second)
    assert stream.weights.tolist() == list(loading.updates[1].weights)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole_stream = make_stream(tmp_path, (4, 4))
    whole = make_loading(whole_stream, [2.0, 3.0], [None, None])
    for step in range(1, 8):
        whole_stream.step_windows(3)
        whole.after_step(step)
    first_stream = make_stream(tmp_path, (4, 4))
    first = make_loading(first_stream, [2.0, 3.0], [None, None])
    for step in range(1, 4):
        first_stream.step_windows(3)
        first.after_step(step)
    first.save(tmp_path)
    stream = make_stream(tmp_path, (4, 4))
    stream.load_state_dict(json.loads(json.dumps(first_stream.state_dict())))
    resumed = DynamicBatchLoading(
        stream,
        lambda index: [2.0, 3.0][index],
        lambda _index: pytest.fail("the teacher is asked once"),
        references=[None, None],
        variant="clipped",
        interval_steps=2,
    )
    resumed.load(tmp_path)
    for step in range(4, 8):
        stream.step_windows(3)
        resumed.after_step(step)

    assert resumed.report() == whole.report()
    assert stream.state_dict() == whole_stream.state_dict()


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
    loading = DynamicBatchLoading(
        make_stream(tmp_path, (4,)),
        lambda _index: loss,
        lambda _index: float("nan"),
        references=[reference],
        variant="unclipped",
        interval_steps=1,
    )

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
