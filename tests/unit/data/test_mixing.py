"""One global order of windows: exact resume, whole epochs, ranks, and weights that act at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.errors import UsageError
from compressor.data.mixing import (
    DomainWindows,
    WindowStream,
    choose_domains,
    count_windows,
    open_stream,
    write_domains,
)
from compressor.recipe.recipe import Distill, Domain
from tests.short_training import stream_of

SEQ_LEN = 4
SIZES = (7, 3, 5)
DOMAIN_STRIDE = 1000

weight_lists = st.lists(st.floats(0.05, 5.0), min_size=1, max_size=3)
step_sizes = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[DomainWindows, ...]:
    """Three domains of 7, 3 and 5 windows whose tokens tell domain and window apart."""
    tokens = [np.arange(size * SEQ_LEN) + DOMAIN_STRIDE * domain for domain, size in enumerate(SIZES)]
    return stream_of(tmp_path_factory.mktemp("domains"), *tokens, seq_len=SEQ_LEN).domains


def make_stream(domains: tuple[DomainWindows, ...], weights: list[float], seed: int = 0) -> WindowStream:
    fresh = [DomainWindows(name=each.name, windows=each.windows) for each in domains[: len(weights)]]
    return WindowStream(fresh, weights, seed=seed)


def identities(windows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Domain and first token of each window."""
    return [(window["domain_id"], int(window["input_ids"][0])) for window in windows]


@settings(deadline=None)
@given(weights=weight_lists, size=st.integers(1, 6), parts=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_parts_that_skip_what_others_draw_are_one_stream(
    domains: tuple[DomainWindows, ...], weights: list[float], size: int, parts: int, seed: int
) -> None:
    steps = 3
    whole = make_stream(domains, weights, seed)
    order = [identities(whole.step_windows(size)) for _ in range(parts * steps)]
    drawn = []
    for part in range(parts):
        stream = make_stream(domains, weights, seed)
        stream.skip(part * steps, size)
        drawn += [identities(stream.step_windows(size)) for _ in range(steps)]
    assert drawn == order


@settings(deadline=None)
@given(weights=weight_lists, sizes=step_sizes, cut=st.integers(0, 12), seed=st.integers(0, 2**32))
def test_resumed_after_any_step_the_stream_continues_the_same(
    domains: tuple[DomainWindows, ...], weights: list[float], sizes: list[int], cut: int, seed: int
) -> None:
    whole = make_stream(domains, weights, seed)
    order = [identities(whole.step_windows(size)) for size in sizes]
    first = make_stream(domains, weights, seed)
    for size in sizes[:cut]:
        first.step_windows(size)
    resumed = make_stream(domains, [1.0] * len(weights), seed)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))

    assert [identities(resumed.step_windows(size)) for size in sizes[cut:]] == order[cut:]
    assert resumed.state_dict() == whole.state_dict()


@settings(deadline=None)
@given(weights=weight_lists, sizes=step_sizes, seed=st.integers(0, 2**32))
def test_an_epoch_of_a_domain_skips_and_repeats_nothing(
    domains: tuple[DomainWindows, ...], weights: list[float], sizes: list[int], seed: int
) -> None:
    stream = make_stream(domains, weights, seed)
    drawn = [window for size in sizes for window in identities(stream.step_windows(size))]

    for domain in range(len(weights)):
        order = [token for chosen, token in drawn if chosen == domain]
        for first in range(0, len(order), SIZES[domain]):
            epoch = order[first : first + SIZES[domain]]
            assert len(set(epoch)) == len(epoch)
        assert stream.drawn[domain] == len(order)


@settings(deadline=None)
@given(weights=weight_lists, sizes=step_sizes, world_size=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_the_ranks_together_see_the_order_of_one_process(
    domains: tuple[DomainWindows, ...], weights: list[float], sizes: list[int], world_size: int, seed: int
) -> None:
    alone = make_stream(domains, weights, seed)
    ranks = [make_stream(domains, weights, seed) for _ in range(world_size)]
    for size in sizes:
        shares = [
            identities(stream.step_windows(size))[rank::world_size] for rank, stream in enumerate(ranks)
        ]
        together = [shares[index % world_size][index // world_size] for index in range(sum(map(len, shares)))]
        assert together == identities(alone.step_windows(size))


@settings(deadline=None)
@given(weights=weight_lists, num_windows=st.integers(1, 64), step=st.integers(0, 10**6))
def test_a_step_holds_each_share_rounded_up_or_down(
    weights: list[float], num_windows: int, step: int
) -> None:
    shares = np.asarray(weights) / sum(weights)
    counts = np.bincount(choose_domains(shares, num_windows, seed=3, step=step), minlength=len(shares))

    assert counts.sum() == num_windows
    assert (np.abs(counts - shares * num_windows) < 1 + 1e-9).all()


def test_single_windows_follow_the_weights_in_the_long_run() -> None:
    shares = np.asarray([0.7, 0.2, 0.1])
    counts = Counter(int(choose_domains(shares, 1, seed=0, step=step)[0]) for step in range(4000))

    assert [counts[domain] / 4000 for domain in range(3)] == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_new_weights_act_at_the_very_next_step(domains: tuple[DomainWindows, ...]) -> None:
    stream = make_stream(domains, [1.0, 1.0, 1.0])
    stream.step_windows(9)
    stream.weights = np.asarray([0.0, 0.0, 1.0])

    assert {domain for domain, _ in identities(stream.step_windows(9))} == {2}


def test_every_epoch_of_a_domain_visits_every_window_once_in_an_order_of_its_own(
    domains: tuple[DomainWindows, ...],
) -> None:
    stream = make_stream(domains, [0.3], seed=5)
    windows, num_distinct = stream.domains[0].windows, stream.num_distinct[0]
    drawn = [w["input_ids"].tolist() for _ in range(3 * num_distinct) for w in stream.step_windows(1)]

    epochs = [drawn[first : first + num_distinct] for first in range(0, len(drawn), num_distinct)]
    whole = sorted(windows[index]["input_ids"].tolist() for index in range(num_distinct))
    assert [sorted(epoch) for epoch in epochs] == [whole] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert stream.num_epochs == (3,)


def test_a_position_of_other_domains_is_refused(domains: tuple[DomainWindows, ...]) -> None:
    state = make_stream(domains, [1.0, 1.0]).state_dict()

    with pytest.raises(UsageError, match="other domains"):
        make_stream(domains, [1.0]).load_state_dict(state)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_impossible_weights(domains: tuple[DomainWindows, ...], weights: list[float]) -> None:
    stream = make_stream(domains, [1.0, 1.0])

    with pytest.raises(ValueError, match="weight"):
        stream.weights = np.asarray(weights)


def test_counting_ahead_is_what_the_stream_draws(domains: tuple[DomainWindows, ...]) -> None:
    weights = [0.55, 0.25, 0.2]
    stream = make_stream(domains, weights, seed=9)
    for _ in range(11):
        stream.step_windows(3)

    assert count_windows(weights, num_steps=11, batch_size=3, seed=9) == stream.drawn


def test_the_recipes_domains_become_a_stream(make_text: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    domains = [
        Domain(name="long", data=str(make_text(num_words=900)), weight=3.0),
        Domain(name="short", data=str(make_text(num_words=60, seed=1)), weight=1.0),
    ]
    config = Distill(context_length=16, intra_document_masking=True)
    write_domains(config, domains, tiny_tokenizer, tmp_path / "tokens", (4, 100))
    stream = open_stream(config, domains, tmp_path / "tokens", seed=0)
    windows = stream.step_windows(16)

    assert stream.names == ("long", "short")
    assert stream.weights.tolist() == [0.75, 0.25]
    assert Counter(window["domain_id"] for window in windows) == {0: 12, 1: 4}
    assert stream.num_epochs[0] == 3
    assert all(sorted(w) == ["domain_id", "input_ids", "labels", "position_ids"] for w in windows)
    long_labels = [w["labels"] for w in windows if w["domain_id"] == 0]
    assert min(int(labels.min()) for labels in long_labels) >= 0  # the text goes on behind the windows


def test_a_domain_shorter_than_one_window_is_named(
    make_text: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    domains, config = [Domain(name="prose", data=str(make_text(num_words=12)))], Distill(context_length=4096)
    write_domains(config, domains, tiny_tokenizer, tmp_path, (1,))

    with pytest.raises(UsageError, match="shorter than one sequence") as caught:
        open_stream(config, domains, tmp_path, seed=0)
    assert "prose" in str(caught.value.where)
