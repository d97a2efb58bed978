"""One order of training windows over several weighted domains, the same on every process.

The whole order follows from the seed and from the weights that held at each step: every process
computes all of it and keeps its own share, so nothing is skipped, repeated or communicated, and the
number of windows drawn from each domain is the whole data position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from compressor.core.errors import UsageError
from compressor.data.packing import IntArray, TokenWindows, Window, epoch_order, text_record, write_tokens
from compressor.data.sources import describe_source
from compressor.recipe.recipe import Distill, Domain

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which of `of` equally long trainings that follow each other on one text, the first being 1."""

    number: int
    of: int


WHOLE = Part(number=1, of=1)


@dataclass(kw_only=True)
class DomainWindows:
    """One domain's distinct windows under its name.

    Attributes:
        name: As in the recipe.
        windows: Its windows in the order of the text.
        text: Which text they are of, for the record of the training.
    """

    name: str
    windows: TokenWindows
    text: dict[str, object] = field(default_factory=dict)
    _order: tuple[int, IntArray] | None = field(default=None, init=False, repr=False)

    def draw(self, number: int, *, seed: int, domain: int) -> Window:
        """The domain's `number`-th window (from 0) over epochs without end, with its `domain_id`."""
        epoch, position = divmod(number, len(self.windows))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.windows), seed, epoch, domain))
        return {**self.windows[int(self._order[1][position])], "domain_id": domain}


class StreamState(TypedDict):
    """Where a stream is, as plain JSON values: steps drawn, and per domain windows, weight and name."""

    step: int
    drawn: list[int]
    weights: list[float]
    domains: list[str]


class WindowStream:
    """Draws the windows of one optimizer step after the other.

    Which domains a step draws from depends on the seed, the step and the weights at that moment;
    inside a domain, each epoch visits every window once before any is seen again.

    Attributes:
        domains: At least one, in the order of their `domain_id`.
        names: Of the domains.
        num_distinct: Distinct windows of each domain.
        step: Steps drawn so far.
        drawn: Windows drawn so far, per domain.
    """

    def __init__(self, domains: Sequence[DomainWindows], weights: Sequence[float], *, seed: int) -> None:
        """Start at the first step; the weights are positive numbers relative to each other."""
        self.domains = tuple(domains)
        self.names = tuple(domain.name for domain in domains)
        self.num_distinct = tuple(len(domain.windows) for domain in domains)
        self._seed = seed
        self.step = 0
        self.drawn = [0] * len(domains)
        self.weights = np.asarray(weights, dtype=np.float64)

    @property
    def weights(self) -> FloatArray:
        """Shares of the domains `[num_domains]`, summing to 1; a copy."""
        return np.array(self._weights)

    @weights.setter
    def weights(self, weights: FloatArray) -> None:
        num_domains = len(self.domains)
        if weights.shape != (num_domains,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(f"weights of {num_domains} domains expected, found {weights.tolist()}")
        if weights.sum() <= 0:
            raise ValueError("no domain has a weight")
        self._weights: FloatArray = weights / weights.sum()

    @property
    def num_epochs(self) -> tuple[float, ...]:
        """How often each domain's distinct text has been seen so far."""
        return tuple(drawn / distinct for drawn, distinct in zip(self.drawn, self.num_distinct, strict=True))

    def step_windows(self, num_windows: int) -> list[Window]:
        """The windows of the next step, over all processes; advances the stream.

        Each holds numpy `input_ids`, `labels` and, with isolated documents, `position_ids`, int64
        `[seq_len]`, and the integer `domain_id`.
        """
        choices = choose_domains(self._weights, num_windows, seed=self._seed, step=self.step)
        windows = []
        for domain in choices.tolist():
            windows.append(self.domains[domain].draw(self.drawn[domain], seed=self._seed, domain=domain))
            self.drawn[domain] += 1
        self.step += 1
        return windows

    def skip(self, num_steps: int, num_windows: int) -> None:
        """Go on as if so many steps of `num_windows` windows had been drawn with the weights as they are."""
        for _ in range(num_steps):
            choices = choose_domains(self._weights, num_windows, seed=self._seed, step=self.step)
            counts = np.bincount(choices, minlength=len(self.domains)).tolist()
            self.drawn = [drawn + count for drawn, count in zip(self.drawn, counts, strict=True)]
            self.step += 1

    def state_dict(self) -> StreamState:
        """The position and the weights."""
        return StreamState(
            step=self.step, drawn=list(self.drawn), weights=self._weights.tolist(), domains=list(self.names)
        )

    def load_state_dict(self, state: StreamState) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            UsageError: when it belongs to other domains.
        """
        if tuple(state["domains"]) != self.names:
            raise UsageError(
                "the data position belongs to other domains",
                expected=", ".join(self.names),
                found=", ".join(state["domains"]),
                hint="give the training texts of the interrupted run, or start again with --overwrite",
            )
        self.step, self.drawn = state["step"], list(state["drawn"])
        # As they were: dividing by their sum again could change their last bit.
        self._weights = np.asarray(state["weights"], dtype=np.float64)


def choose_domains(weights: FloatArray, num_windows: int, *, seed: int, step: int) -> IntArray:
    """Which domain each window of a step comes from, `[num_windows]`.

    Systematic sampling: one uniform number places a comb of `num_windows` equally spaced teeth on the
    domains' shares of the unit interval, so that each domain's count is its share of the windows
    rounded up or down, and right in expectation; their order is then shuffled. The weights `[num_domains]`
    sum to 1; steps count from 0.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
    teeth = (np.arange(num_windows) + generator.random()) / num_windows
    choices = np.searchsorted(np.cumsum(weights), teeth, side="right")
    # Rounding may leave the last edge below the last tooth, which belongs to the last share all the same.
    return generator.permutation(np.minimum(choices, np.flatnonzero(weights)[-1]).astype(np.int64))


def count_windows(weights: Sequence[float], *, num_steps: int, batch_size: int, seed: int) -> list[int]:
    """How many windows a stream whose weights never change draws from each domain in `num_steps`."""
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    counts = np.zeros(len(shares), dtype=np.int64)
    for step in range(num_steps):
        choices = choose_domains(shares, batch_size, seed=seed, step=step)
        counts += np.bincount(choices, minlength=len(shares))
    return [int(count) for count in counts]


def write_domains(
    config: Distill, domains: Sequence[Domain], tokenizer: Any, directory: Path, num_windows: Sequence[int]
) -> None:
    """Tokenise the training part of every domain into `directory`, as `0.bin`, `1.bin` ...

    `num_windows` are the distinct windows wanted per domain; a domain with less text repeats itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for index, (domain, count) in enumerate(zip(domains, num_windows, strict=True)):
        # One more token than the windows hold: the last one's label.
        max_tokens = max(1, count) * config.context_length + 1
        path = _tokens_path(directory, index)
        write_tokens(domain.data, "train", tokenizer, path, max_tokens=max_tokens, loss_on=config.loss_on)


def open_stream(config: Distill, domains: Sequence[Domain], directory: Path, *, seed: int) -> WindowStream:
    """Mix the domains that `write_domains` tokenised, by their weights.

    Raises:
        UsageError: when a domain's text does not fill one window.
    """
    opened = []
    for index, domain in enumerate(domains):
        path = _tokens_path(directory, index)
        try:
            windows = TokenWindows(
                path,
                seq_len=config.context_length,
                isolate_documents=config.intra_document_masking,
                loss_on=config.loss_on,
            )
        except UsageError as error:
            raise UsageError(
                error.what,
                where=f"domain {domain.name}: {domain.data}",
                expected=error.expected,
                found=error.found,
                hint=error.hint,
            ) from error
        text = {**describe_source(domain.data), **text_record(path)}
        opened.append(DomainWindows(name=domain.name, windows=windows, text=text))
    return WindowStream(opened, [domain.weight for domain in domains], seed=seed)


def _tokens_path(directory: Path, index: int) -> Path:
    return directory / f"{index}.bin"
