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
from compressor.data.tokenise import LossOn
from compressor.recipe.recipe import Domain

FloatArray = npt.NDArray[np.float64]


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


class DistinctWindows:
    """Every distinct window of several domains by one index, domain after domain."""

    def __init__(self, domains: Sequence[DomainWindows]) -> None:
        self._domains = domains
        self._ends = np.cumsum([len(domain.windows) for domain in domains])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Window:
        domain = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[domain]) - len(self._domains[domain].windows)
        return self._domains[domain].windows[index - first]


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
    """

    def __init__(self, domains: Sequence[DomainWindows], weights: Sequence[float], *, seed: int) -> None:
        """Start at the first step.

        Args:
            domains: At least one.
            weights: One positive number each, relative to each other.
            seed: Decides the order.
        """
        if not domains:
            raise ValueError("a stream needs a domain")
        self._domains = tuple(domains)
        self._seed = seed
        self._step = 0
        self._drawn = [0] * len(domains)
        self.weights = np.asarray(weights, dtype=np.float64)

    @property
    def num_domains(self) -> int:
        """How many domains there are."""
        return len(self._domains)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains, in the order of their `domain_id`."""
        return tuple(domain.name for domain in self._domains)

    @property
    def weights(self) -> FloatArray:
        """Shares of the domains `[num_domains]`, summing to 1; a copy."""
        return np.array(self._weights)

    @weights.setter
    def weights(self, weights: FloatArray) -> None:
        if weights.shape != (self.num_domains,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(f"weights of {self.num_domains} domains expected, found {weights.tolist()}")
        if weights.sum() <= 0:
            raise ValueError("no domain has a weight")
        self._weights: FloatArray = weights / weights.sum()

    @property
    def step(self) -> int:
        """Steps drawn so far."""
        return self._step

    @property
    def drawn(self) -> tuple[int, ...]:
        """Windows drawn so far, per domain."""
        return tuple(self._drawn)

    @property
    def distinct(self) -> DistinctWindows:
        """The windows that the stream draws from."""
        return DistinctWindows(self._domains)

    @property
    def num_distinct(self) -> tuple[int, ...]:
        """Distinct windows of each domain."""
        return tuple(len(domain.windows) for domain in self._domains)

    @property
    def texts(self) -> dict[str, dict[str, object]]:
        """Which text each domain's windows are of, by name."""
        return {domain.name: domain.text for domain in self._domains}

    @property
    def num_epochs(self) -> tuple[float, ...]:
        """How often each domain's distinct text has been seen so far."""
        return tuple(
            number / len(domain.windows) for number, domain in zip(self._drawn, self._domains, strict=True)
        )

    def step_windows(self, num_windows: int) -> list[Window]:
        """The windows of the next step, over all processes; advances the stream.

        Each holds numpy `input_ids`, `labels` and, with isolated documents, `position_ids`, int64
        `[seq_len]`, and the integer `domain_id`.
        """
        choices = choose_domains(self._weights, num_windows, seed=self._seed, step=self._step)
        windows = []
        for domain in choices.tolist():
            windows.append(self._domains[domain].draw(self._drawn[domain], seed=self._seed, domain=domain))
            self._drawn[domain] += 1
        self._step += 1
        return windows

    def state_dict(self) -> StreamState:
        """The position and the weights."""
        return StreamState(
            step=self._step, drawn=list(self._drawn), weights=self._weights.tolist(), domains=list(self.names)
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
        self._step, self._drawn = state["step"], list(state["drawn"])
        # As they were: dividing by their sum again could change their last bit.
        self._weights = np.asarray(state["weights"], dtype=np.float64)


def choose_domains(weights: FloatArray, num_windows: int, *, seed: int, step: int) -> IntArray:
    """Which domain each window of a step comes from, `[num_windows]`.

    Systematic sampling: one uniform number places a comb of `num_windows` equally spaced teeth on the
    domains' shares of the unit interval, so that each domain's count is its share of the windows
    rounded up or down, and right in expectation; their order is then shuffled.

    Args:
        weights: Shares summing to 1, `[num_domains]`.
        num_windows: Windows of the step.
        seed: Seed of the stream.
        step: The step, from 0.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
    teeth = (np.arange(num_windows) + generator.random()) / num_windows
    choices = np.searchsorted(np.cumsum(weights), teeth, side="right")
    # Rounding may leave the last edge below the last tooth, which belongs to the last share all the same.
    return generator.permutation(np.minimum(choices, np.flatnonzero(weights)[-1]).astype(np.int64))


def count_windows(weights: Sequence[float], *, num_steps: int, batch_size: int, seed: int) -> tuple[int, ...]:
    """How many windows a stream whose weights never change draws from each domain in `num_steps`."""
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    counts = np.zeros(len(shares), dtype=np.int64)
    for step in range(num_steps):
        choices = choose_domains(shares, batch_size, seed=seed, step=step)
        counts += np.bincount(choices, minlength=len(shares))
    return tuple(counts.tolist())


def write_domains(
    domains: Sequence[Domain],
    tokenizer: Any,
    directory: Path,
    *,
    num_windows: Sequence[int],
    seq_len: int,
    loss_on: LossOn = "all",
) -> None:
    """Tokenise the training part of every domain into `directory`, as `0.bin`, `1.bin` ...

    Args:
        domains: The recipe's training texts.
        tokenizer: A Hugging Face tokenizer.
        directory: Made if it is not there.
        num_windows: Distinct windows wanted per domain; a domain with less text repeats itself.
        seq_len: Tokens per window.
        loss_on: `responses` to mark them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for index, (domain, count) in enumerate(zip(domains, num_windows, strict=True)):
        # One more token than the windows hold: the last one's label.
        max_tokens = max(1, count) * seq_len + 1
        path = _tokens_path(directory, index)
        write_tokens(domain.data, "train", tokenizer, path, max_tokens=max_tokens, loss_on=loss_on)


def open_stream(
    domains: Sequence[Domain],
    directory: Path,
    *,
    seq_len: int,
    isolate_documents: bool,
    seed: int,
    loss_on: LossOn = "all",
) -> WindowStream:
    """Mix the domains that `write_domains` tokenised, by their weights.

    Args:
        domains: The recipe's training texts.
        directory: Of the token files.
        seq_len: Tokens per window.
        isolate_documents: Keep labels and positions from crossing documents.
        seed: Decides the order.
        loss_on: Which labels count.

    Raises:
        UsageError: when a domain's text does not fill one window.
    """
    opened = []
    for index, domain in enumerate(domains):
        path = _tokens_path(directory, index)
        try:
            windows = TokenWindows(
                path, seq_len=seq_len, isolate_documents=isolate_documents, loss_on=loss_on
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
