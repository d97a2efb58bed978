"""Block-by-block repair of a compressed model, the original's hidden states beside its own.

After units, layers or weights are gone, the weights that stay are no longer the best ones. Layer by layer,
in the order of the forward pass, every linear layer is solved again by least squares on what the compressed
model really computes up to it:

* a layer that reads a norm gives what the original's layer gives, of the kept units;
* a layer that writes to the residual stream makes up what the stream lacks: the original's stream after the
  sublayer, kept channels, minus the compressed model's before it. Errors so do not add up over layers, and
  the last kept layer before removed ones stands in for them.

Tokens are weighted by one over the root mean square of the original's stream, so that a few tokens of huge
norm do not decide. Windows have three uses: to fit, to choose the ridge, and to accept; a weight stays as it
was unless its error falls on the windows to accept, of the values that are stored.

Attention and MLP are two sublayers with the same steps: the layers that read its norm are solved, then the
one that writes its output. Both models run one sublayer at a time, so the original passes through each of its
layers once, and the compressed model through each sublayer twice.

Legend: T tokens, I inputs, O outputs, H hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Literal, get_args

import torch
from torch import nn

from compressor.calibration.hooks import observed
from compressor.calibration.rewrite import keep_weights
from compressor.calibration.stream import Stream
from compressor.core.errors import VerificationError
from compressor.models.adapter import DecoderLayer
from compressor.models.axes import Weight
from compressor.models.families import Family
from compressor.pruning.plan import PrunePlan
from compressor.pruning.slicing import kept_channels
from compressor.repair.least_squares import NotPositiveDefiniteError, Sums, solve

Use = Literal["fit", "choose", "accept"]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Of every so many windows one chooses the ridge, one accepts, and the rest is fitted.
_PERIOD = 8
_OUTLIER = 10.0
# Outputs that choose a linear layer's ridge, so that trying all of them costs less than the final solution.
_CHOOSING_OUTPUTS = 64


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What became of one linear layer.

    Attributes:
        accepted: Whether its weight changed.
        ridge: That did best on the windows to choose.
        error_ratio: Weighted squared error of the repaired weight on the windows to accept, over that of the
            weight as it was; None where that was 0, or no ridge gave a solution.
    """

    accepted: bool
    ridge: float
    error_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """Attention or MLP of every decoder layer.

    Attributes:
        norm: Name of its norm, relative to the layer.
        readers: The matrices that read the norm.
        writer: The one whose output is added to the residual stream.
        is_attention: Attention is called with more than hidden states.
    """

    norm: str
    readers: tuple[Weight, ...]
    writer: Weight
    is_attention: bool

    def read(self, stream: Stream, index: int, states: torch.Tensor) -> torch.Tensor:
        """What the readers are given, `[1, T, H]`, in the layer in use."""
        x: torch.Tensor = stream.adapter.layers[index].part(self.norm)(stream.placed(states))
        return x

    def seen(
        self, stream: Stream, index: int, states: torch.Tensor, places: Mapping[str, str]
    ) -> dict[str, torch.Tensor]:
        """What passes places on the way, float32 rows `[T, channels]`, in the layer in use.

        Args:
            stream: Whose layer.
            index: Of the layer.
            states: The residual stream before the sublayer.
            places: Modules' names relative to the layer, and "input" or "output".
        """
        layer = stream.adapter.layers[index]
        seen: dict[str, torch.Tensor] = {}

        def observer(name: str) -> Callable[[torch.Tensor], None]:
            def observe(values: torch.Tensor) -> None:
                seen[name] = _rows(values)
                if len(seen) == len(places):
                    raise _SeenError

            return observe

        hooks: dict[str, list[tuple[nn.Module, Callable[[torch.Tensor], None]]]] = {"input": [], "output": []}
        for name, side in places.items():
            hooks[side].append((layer.part(name), observer(name)))
        with observed(inputs=hooks["input"], outputs=hooks["output"]), suppress(_SeenError):
            if self.is_attention:
                stream.run(index, states)
            else:
                layer.part(self.writer.module.rpartition(".")[0])(self.read(stream, index, states))
        return seen


class _SeenError(Exception):
    """Everything that was asked for has been seen; the rest of the layer need not run."""


def sublayers(family: Family) -> tuple[Sublayer, Sublayer]:
    """Attention and MLP of an architecture."""
    by_module = {weight.module: weight for weight in family.linears}
    attention_readers, (o,), mlp_readers, (down,) = (
        tuple(by_module[name] for name in names) for names in family.sharing_input
    )

    def sublayer(readers: tuple[Weight, ...], writer: Weight, *, is_attention: bool) -> Sublayer:
        norm = family.module(str(readers[0].reads))
        return Sublayer(norm=norm, readers=readers, writer=writer, is_attention=is_attention)

    return sublayer(attention_readers, o, is_attention=True), sublayer(mlp_readers, down, is_attention=False)


@dataclass(kw_only=True)
class Walk:
    """Two models side by side, and what was found so far.

    Attributes:
        original: Hidden states of the model that shows what is wanted.
        compressed: Those of the model that is repaired.
        plan: Which layers and units of the original stayed.
        keep_mask: Which weights exist, by full name; None: all.
        scratch: Where changed weights go.
        on_layer: Called after every layer of the compressed model.
        changed: Full names of the changed weights, and the file that holds each.
        layers: What became of every linear layer, by full name.
        outlier_tokens: Largest number of tokens, over layers, whose stream is ten times the median.
        solve_seconds: Spent in solving.
    """

    original: Stream
    compressed: Stream
    plan: PrunePlan
    keep_mask: Callable[[str], torch.Tensor | None]
    scratch: Path
    on_layer: Callable[[], None]
    changed: dict[str, Path] = field(default_factory=dict)
    layers: dict[str, Repaired] = field(default_factory=dict)
    outlier_tokens: int = 0
    solve_seconds: float = 0.0

    @torch.no_grad()
    def run(self) -> None:
        """Repair every layer in order."""
        kept = (*self.plan.layers, self.plan.source.num_hidden_layers)
        attention, mlp = sublayers(self.plan.source.family)
        self._pass_through(range(kept[0]))
        for index, (own, end) in enumerate(pairwise(kept)):
            with self.compressed.layer(index) as layer:
                with self.original.layer(own):
                    replaced = self._repair_readers(attention, layer, index, own)
                    replaced |= self._repair_writer(attention, layer, index)
                    replaced |= self._repair_readers(mlp, layer, index, own)
                self._pass_through(range(own + 1, end))
                replaced |= self._repair_writer(mlp, layer, index)
            prefix = self.compressed.prefix(index)
            self.changed |= keep_weights(replaced, prefix, self.scratch / f"layer-{index}.safetensors")
            self.on_layer()

    def _pass_through(self, removed: range) -> None:
        """Send the original's states through layers that the compressed model lacks."""
        for index in removed:
            with self.original.layer(index):
                for sublayer in sublayers(self.plan.source.family):
                    for states in self.original.states:
                        _add_(states, sublayer, self.original, index)

    def _repair_readers(
        self, sublayer: Sublayer, layer: DecoderLayer, index: int, own: int
    ) -> dict[str, torch.Tensor]:
        """Solve what reads the norm; the original's states then are those after the sublayer."""
        names = [weight.module for weight in sublayer.readers]
        rows = [kept_channels(self.plan, tuple(weight.rows.values()), own) for weight in sublayer.readers]
        places = dict.fromkeys((*names, sublayer.writer.module), "output")

        def gather(theirs: torch.Tensor, ours: torch.Tensor) -> tuple[torch.Tensor, ...]:
            seen = sublayer.seen(self.original, own, theirs, places)
            wanted = [_taken(seen[name], kept) for name, kept in zip(names, rows, strict=True)]
            inputs = sublayer.read(self.compressed, index, ours)
            given = [_rows(layer.linear_layers()[name](inputs)) for name in names]
            scale = self._scale(theirs)
            theirs.add_(seen[sublayer.writer.module].view_as(theirs).to(theirs.device))
            return _rows(inputs), torch.cat(wanted, dim=1) - torch.cat(given, dim=1), scale

        return self._repair(sublayer.readers, layer, index, gather)

    def _repair_writer(self, sublayer: Sublayer, layer: DecoderLayer, index: int) -> dict[str, torch.Tensor]:
        """Solve what writes to the stream; the compressed model's states then are those after it."""
        writer, hidden = sublayer.writer, kept_channels(self.plan, ("hidden",), None)
        linear = layer.linear_layers()[writer.module]

        def gather(theirs: torch.Tensor, ours: torch.Tensor) -> tuple[torch.Tensor, ...]:
            inputs = sublayer.seen(self.compressed, index, ours, {writer.module: "input"})[writer.module]
            given = self._rows_of(ours) + _rows(linear(inputs.to(linear.weight.dtype)))
            return inputs, _taken(self._rows_of(theirs), hidden) - given, self._scale(theirs)

        replaced = self._repair((writer,), layer, index, gather)
        for states in self.compressed.states:
            _add_(states, sublayer, self.compressed, index)
        return replaced

    def _repair(
        self,
        weights: tuple[Weight, ...],
        layer: DecoderLayer,
        index: int,
        gather: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    ) -> dict[str, torch.Tensor]:
        """Solve the linear layers that share an input, and give those that improve their new weights.

        Args:
            weights: Theirs.
            layer: The compressed model's.
            index: Of the layer.
            gather: Gives of one window's states of both models the layers' input, what their outputs lack,
                and by what every token is divided.
        """
        linears = [layer.linear_layers()[weight.module] for weight in weights]
        sums = self._sums(linears, gather)
        started = monotonic()
        replaced: dict[str, torch.Tensor] = {}
        outputs = torch.arange(sum(linear.out_features for linear in linears)).split(
            [linear.out_features for linear in linears]
        )
        for weight, linear, own in zip(weights, linears, outputs, strict=True):
            name = f"{self.compressed.prefix(index)}{weight.name}"
            of_use = {use: found.of(slice(int(own[0]), int(own[-1]) + 1)) for use, found in sums.items()}
            if not all(
                part.error.isfinite().all() and part.gram.isfinite().all() for part in of_use.values()
            ):
                raise VerificationError("an activation is not finite", where=name, found="NaN or inf")
            repaired, self.layers[name] = solved(linear.weight, of_use, self.keep_mask(name))
            if self.layers[name].accepted:
                linear.weight.data = repaired
                replaced[weight.module] = repaired
        self.solve_seconds += monotonic() - started
        return replaced

    def _sums(
        self,
        linears: list[nn.Linear],
        gather: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    ) -> dict[Use, Sums]:
        """The sums of linear layers with one input, over the windows of each use."""
        num_outputs = sum(linear.out_features for linear in linears)
        device = linears[0].weight.device
        sums: dict[Use, Sums] = {
            use: Sums.empty(linears[0].in_features, num_outputs, device) for use in get_args(Use)
        }
        num_windows, scales = len(self.original.states), []
        for window in range(num_windows):
            inputs, missing, scale = gather(self.original.states[window], self.compressed.states[window])
            scales.append(scale)
            sums[use_of(window, num_windows)].add(inputs / scale, missing / scale)
        found = torch.cat(scales)
        self.outlier_tokens = max(self.outlier_tokens, int((found > _OUTLIER * found.median()).sum()))
        return sums

    def _scale(self, states: torch.Tensor) -> torch.Tensor:
        """The root mean square of every token of a window's stream, `[T, 1]`."""
        return self._rows_of(states).square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)

    def _rows_of(self, states: torch.Tensor) -> torch.Tensor:
        return _rows(states.to(self.compressed.device))


def use_of(window: int, num_windows: int) -> Use:
    """What a window is for; at least three are needed."""
    period = min(_PERIOD, num_windows)
    uses: dict[int, Use] = {period // 2: "choose", period - 1: "accept"}
    return uses.get(window % period, "fit")


def _taken(rows_TO: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return rows_TO if kept is None else rows_TO[:, kept.to(rows_TO.device)]


def _rows(states: torch.Tensor) -> torch.Tensor:
    return states.flatten(0, -2).float()


def _add_(states: torch.Tensor, sublayer: Sublayer, stream: Stream, index: int) -> None:
    """Add a sublayer's output to its stream, in the states' float32.

    In 16 bits the sums would be off by as much as what a repair is to find.
    """
    writer = sublayer.writer.module
    seen = sublayer.seen(stream, index, states, {writer: "output"})
    states.add_(seen[writer].view_as(states).to(states.device))


def solved(
    weight: torch.Tensor, sums: dict[Use, Sums], keep_mask: torch.Tensor | None
) -> tuple[torch.Tensor, Repaired]:
    """The repaired weight in its own dtype, and whether it is better than what is there.

    Args:
        weight: `[O, I]`; not changed.
        sums: Of the windows of each use.
        keep_mask: bool `[O, I]`: weights outside it stay 0.
    """
    ridge = _chosen_ridge(sums, keep_mask)
    before, both = weight.double(), sums["fit"] + sums["choose"]
    try:
        change = solve(both.gram, both.cross, ridge, keep_mask)
    except NotPositiveDefiniteError:
        return weight, Repaired(accepted=False, ridge=ridge, error_ratio=None)
    repaired = (before + change).to(weight.dtype)
    error_before = sums["accept"].error.sum().item()
    ratio = sums["accept"].error_after(repaired.double() - before) / error_before if error_before else None
    return repaired, Repaired(accepted=ratio is not None and ratio < 1, ridge=ridge, error_ratio=ratio)


def _chosen_ridge(sums: dict[Use, Sums], keep_mask: torch.Tensor | None) -> float:
    """The ridge of least error on the windows to choose, by outputs that are evenly spread."""
    num_outputs = len(sums["fit"].cross)
    outputs = torch.arange(0, num_outputs, max(1, num_outputs // _CHOOSING_OUTPUTS))
    fit, choose = sums["fit"].of(outputs), sums["choose"].of(outputs)
    mask = None if keep_mask is None else keep_mask[outputs]

    def error(ridge: float) -> float:
        try:
            return choose.error_after(solve(fit.gram, fit.cross, ridge, mask))
        except NotPositiveDefiniteError:
            return math.inf

    return min(RIDGES, key=error)
