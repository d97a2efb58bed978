"""What a model predicts at every position of a text, and how far that is from another model's predictions.

Per window of tokens: the mean negative log-likelihood, and beside a baseline the divergence from it and the
agreement with it. Per text: how much the predictions depend on what is read at all.

The baseline's logits would take gigabytes; its last hidden states and its LM head give them again, a few
hundred positions at a time, so that no two models are in memory together. A graph gives logits only: it can
be compared with a baseline, but is none.

Models of one vocabulary may have embeddings padded to different sizes: they are compared over the tokens that
both have.

Legend: T positions of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from compressor.data.tokenise import MaskArray, TokenArray
from compressor.evaluation.executed import Logits
from compressor.models.adapter import ModelAdapter

CHUNK_POSITIONS = 256
_BEST_AND_SECOND = 2


@dataclass(kw_only=True)
class Baseline:
    """A model's last hidden states `[num_positions, hidden_size]`, by window, and its LM head."""

    head: torch.Tensor
    hidden: list[torch.Tensor] = field(default_factory=list)


@dataclass(kw_only=True)
class Predictions:
    """Means over the positions of each window, in nats where they are likelihoods, and `information`.

    Attributes:
        nll: Negative log-likelihood of the next token.
        kl: KL from the baseline's next-token distribution to this model's; empty without a baseline.
        top1: Share of positions at which both rank the same token first.
        margin: Log-probability of the baseline's first token over that of the best other token, by which this
            model decides the same; negative where it decides otherwise.
        information: Mutual information between position and predicted token: the entropy of the mean
            distribution over the mean entropy. A model that predicts the same whatever it reads has 0.
        sums: Of the negative log-likelihood per window, for the mean over all tokens.
    """

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    information: float = 0.0
    sums: list[float] = field(default_factory=list)


@torch.no_grad()
def predict(
    model: Any,
    windows: Iterable[TokenArray],
    *,
    masks: Sequence[MaskArray] | None = None,
    baseline: Baseline | None = None,
    on_window: Callable[[], None] = lambda: None,
) -> tuple[Predictions, Baseline]:
    """Read windows of token ids, `[num_windows, window]`; the first token of each is context only.

    With `masks`, windows may differ in length, and only tokens where the mask of their window is 1 are
    predicted: at least one of each beside the first.

    Returns what was found; and, of a model without a `baseline`, what a later one can be compared with.
    """
    adapter = ModelAdapter(model)
    own = Baseline(head=adapter.lm_head_weight)
    tally = _Tally(baseline, own.head.device)
    for number, window in enumerate(windows):
        ids = _ids_of(window).to(own.head.device)
        hidden = adapter.body(ids[None], use_cache=False).last_hidden_state[0, :-1]
        targets = ids[1:]
        if masks is not None:
            chosen = torch.from_numpy(masks[number][1:].astype(bool)).to(ids.device)
            hidden, targets = hidden[chosen], targets[chosen]
        tally.add(targets, ((part @ own.head.T).float() for part in hidden.split(CHUNK_POSITIONS)))
        if baseline is None:
            own.hidden.append(hidden.cpu())
        on_window()
    return tally.predictions(), own


@torch.no_grad()
def predict_by_logits(
    logits: Logits,
    windows: TokenArray,
    *,
    baseline: Baseline | None = None,
    on_window: Callable[[], None] = lambda: None,
) -> Predictions:
    """The same of a function from token ids to logits, which reads every window at once."""
    tally = _Tally(baseline, torch.device("cpu"))
    for window in windows:
        scored = logits(window.tolist())[:-1]
        tally.add(_ids_of(window)[1:], scored.float().split(CHUNK_POSITIONS))
        on_window()
    return tally.predictions()


def _ids_of(window: TokenArray) -> torch.Tensor:
    return torch.from_numpy(window.astype("int64"))


class _Tally:
    """Window by window, what is found of a model, beside a baseline where there is one."""

    def __init__(self, baseline: Baseline | None, device: torch.device) -> None:
        self._baseline, self._device = baseline, device
        self._head_HV = None if baseline is None else baseline.head.T.to(device)
        self._found, self._spread = Predictions(), _Spread()

    def add(self, targets: torch.Tensor, chunks: Iterable[torch.Tensor]) -> None:
        """Take in the next window: the tokens that follow, and logits of some positions after the other.

        `targets` are `[window - 1]`, the logits float32 and `[T, V]`; all on the device.
        """
        start, sums = 0, _Sums()
        for logits_TV in chunks:
            chunk = slice(start, start + len(logits_TV))
            sums.add(logits_TV, targets[chunk], self._reference(chunk))
            self._spread.add(logits_TV)
            start = chunk.stop
        sums.report(self._found, len(targets))

    def _reference(self, chunk: slice) -> torch.Tensor | None:
        """The baseline's logits at positions of the window that is taken in, `[T, V]`."""
        if self._baseline is None or self._head_HV is None:
            return None
        hidden_TH = self._baseline.hidden[len(self._found.sums)][chunk].to(self._device)
        return (hidden_TH @ self._head_HV).float()

    def predictions(self) -> Predictions:
        """What was found over all windows."""
        self._found.information = self._spread.information()
        return self._found


@dataclass
class _Sums:
    """Sums over the positions of one window."""

    nll: float = 0.0
    kl: float = 0.0
    agreeing: int = 0
    margin: float = 0.0
    is_compared: bool = False

    def add(
        self, logits_TV: torch.Tensor, targets_T: torch.Tensor, reference_TV: torch.Tensor | None
    ) -> None:
        loss = functional.cross_entropy(logits_TV, targets_T, reduction="sum")
        self.nll += loss.double().item()
        if reference_TV is None:
            return
        self.is_compared = True
        num_common = min(reference_TV.shape[-1], logits_TV.shape[-1])
        log_p, log_q = (each[:, :num_common].log_softmax(-1) for each in (reference_TV, logits_TV))
        self.kl += (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0).double().sum().item()
        first = log_p.argmax(-1, keepdim=True)
        self.agreeing += int((log_q.argmax(-1, keepdim=True) == first).sum())
        values, tokens = log_q.topk(_BEST_AND_SECOND, dim=-1)
        other = torch.where(tokens[:, :1] == first, values[:, 1:], values[:, :1])
        self.margin += (log_q.gather(-1, first) - other).double().sum().item()

    def report(self, found: Predictions, num_positions: int) -> None:
        found.sums.append(self.nll)
        found.nll.append(self.nll / num_positions)
        if self.is_compared:
            found.kl.append(self.kl / num_positions)
            found.top1.append(self.agreeing / num_positions)
            found.margin.append(self.margin / num_positions)


@dataclass
class _Spread:
    """The mean next-token distribution and the mean entropy, over all positions."""

    mean: torch.Tensor | None = None
    entropy: float = 0.0
    num_positions: int = 0

    def add(self, logits_TV: torch.Tensor) -> None:
        log_p = logits_TV.log_softmax(-1)
        p = log_p.exp()
        total = p.sum(0).double().cpu()
        self.mean = total if self.mean is None else self.mean + total
        self.entropy -= (p * log_p).sum(-1).double().sum().item()
        self.num_positions += len(logits_TV)

    def information(self) -> float:
        assert self.mean is not None, "there is at least one window"
        mean = self.mean / self.num_positions
        of_mean = -torch.xlogy(mean, mean).sum().item()
        return max(0.0, of_mean - self.entropy / self.num_positions)
