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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import get_args

import torch
from torch import nn

from compressor.calibration.rewrite import keep_weights
from compressor.calibration.stream import Stream, mapped_states
from compressor.core.errors import VerificationError
from compressor.models.adapter import DecoderLayer
from compressor.models.axes import Weight
from compressor.models.sparse.low_rank import AdapterBranch
from compressor.pruning.plan import PrunePlan
from compressor.pruning.slicing import kept_channels
from compressor.repair.branch import grouped
from compressor.repair.choice import Repaired, Use, solved, use_of
from compressor.repair.least_squares import Sums
from compressor.repair.local_steps import Examples, Matrix, Stepped, part_of, take_steps
from compressor.repair.sublayer import Sublayer, add_, rows_of, sublayers

_OUTLIER = 10.0


@dataclass(kw_only=True)
class Walk:
    """Two models side by side, and what was found so far.

    Attributes:
        original: Hidden states of the model that shows what is wanted.
        compressed: Those of the model that is repaired.
        plan: Which layers and units of the original stayed.
        basis: float32 `[H, K]`, the directions of the compressed model's channels in the original's stream;
            None: they are kept channels.
        keep_mask: Which weights exist, by full name and on any device; None: all.
        scratch: Where changed weights go.
        on_layer: Called after every layer of the compressed model.
        changed: Full names of the changed weights, and the file that holds each.
        layers: What became of every linear layer, by full name.
        branches: Low-rank branches beside sparse weights, by their layers' full names; each is fitted again
            to the error that its repaired weight leaves.
        branch_layers: What became of every branch; one that is not accepted adds nothing.
        steps: Gradient steps after least squares, of attention and of the MLP by themselves.
        parts: What became of every attention and MLP by steps, by full name.
        outlier_tokens: Largest number of tokens, over layers, whose stream is ten times the median.
        solve_seconds: Spent in solving.
    """

    original: Stream
    compressed: Stream
    plan: PrunePlan
    basis: torch.Tensor | None = None
    keep_mask: Callable[[str], torch.Tensor | None]
    scratch: Path
    on_layer: Callable[[], None]
    changed: dict[str, Path] = field(default_factory=dict)
    layers: dict[str, Repaired] = field(default_factory=dict)
    branches: dict[str, AdapterBranch] = field(default_factory=dict)
    branch_layers: dict[str, Repaired] = field(default_factory=dict)
    steps: int = 0
    parts: dict[str, Stepped] = field(default_factory=dict)
    outlier_tokens: int = 0
    solve_seconds: float = 0.0

    @torch.no_grad()
    def run(self) -> None:
        """Repair every layer in order."""
        kept = (*self.plan.layers, self.plan.source.num_hidden_layers)
        attention, mlp = sublayers(self.plan.source.family)
        self._pass_through(range(kept[0]))
        for index, (own, end) in enumerate(pairwise(kept)):
            with self._compressed_layer(index) as layer:
                with self.original.layer(own):
                    replaced = self._repair_readers(attention, layer, index, own)
                    replaced |= self._repair_writer(attention, layer, index)
                    replaced |= self._repair_readers(mlp, layer, index, own)
                self._pass_through(range(own + 1, end))
                replaced |= self._repair_writer(mlp, layer, index)
            prefix = self.compressed.prefix(index)
            self.changed |= keep_weights(replaced, prefix, self.scratch / f"layer-{index}.safetensors")
            self.on_layer()

    @contextmanager
    def _compressed_layer(self, index: int) -> Iterator[DecoderLayer]:
        """A layer of the compressed model with its weights, while the context lasts."""
        with self.compressed.layer(index) as layer:
            yield layer

    def _pass_through(self, removed: range) -> None:
        """Send the original's states through layers that the compressed model lacks."""
        for index in removed:
            with self.original.layer(index):
                for sublayer in sublayers(self.plan.source.family):
                    for states in self.original.states:
                        add_(states, sublayer, self.original, index)

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
            inputs = self._read(sublayer, index, ours)
            given = [rows_of(layer.linear_layers()[name](inputs)) for name in names]
            scale = self._scale(theirs)
            theirs.add_(seen[sublayer.writer.module].view_as(theirs).to(theirs.device))
            return rows_of(inputs), torch.cat(wanted, dim=1) - torch.cat(given, dim=1), scale

        return self._repair(sublayer.readers, layer, index, gather)

    def _read(self, sublayer: Sublayer, index: int, states: torch.Tensor) -> torch.Tensor:
        """What the readers of a norm multiply their weights with, `[1, T, H]`."""
        return sublayer.read(self.compressed, index, states)

    def _repair_writer(self, sublayer: Sublayer, layer: DecoderLayer, index: int) -> dict[str, torch.Tensor]:
        """Solve what writes to the stream; the compressed model's states then are those after it."""
        writer = sublayer.writer
        linear = layer.linear_layers()[writer.module]

        def gather(theirs: torch.Tensor, ours: torch.Tensor) -> tuple[torch.Tensor, ...]:
            inputs = sublayer.seen(self.compressed, index, ours, {writer.module: "input"})[writer.module]
            given = self._rows(ours) + rows_of(linear(inputs.to(linear.weight.dtype)))
            return inputs, self._as_compressed(self._rows(theirs)) - given, self._scale(theirs)

        replaced = self._repair((writer,), layer, index, gather)
        if self.steps:
            replaced |= self._take_steps(sublayer, layer, index)
        for states in self.compressed.states:
            add_(states, sublayer, self.compressed, index)
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
            before = linear.weight.data
            repaired, self.layers[name] = self._solved_(name, linear, of_use)
            if self.layers[name].accepted:
                replaced[weight.module] = repaired
            self._fit_branch(name.removesuffix(".weight"), linear, before, of_use)
        self.solve_seconds += monotonic() - started
        return replaced

    def _solved_(self, name: str, linear: nn.Linear, sums: dict[Use, Sums]) -> tuple[torch.Tensor, Repaired]:
        """Solve a linear layer, which then computes with what it will; returns the weight that is stored."""
        repaired, found = solved(linear.weight, sums, self._mask(name, linear))
        if found.accepted:
            linear.weight.data = repaired
        return repaired, found

    def _mask(self, name: str, linear: nn.Linear) -> torch.Tensor | None:
        """Which of a layer's weights exist, where they are computed with; None: all."""
        mask = self.keep_mask(name)
        return None if mask is None else mask.to(linear.weight.device)

    def _fit_branch(self, name: str, linear: nn.Linear, before: torch.Tensor, sums: dict[Use, Sums]) -> None:
        """Fit a layer's branch, if it has one, to what its weight leaves; layers after it see both act."""
        branch = self.branches.get(name)
        if branch is None:
            return
        change = linear.weight.double() - before.double()
        left = {use: grouped(part.after(change), branch.group_size) for use, part in sums.items()}
        none = torch.zeros(linear.out_features, branch.rank, device=linear.weight.device)
        up, self.branch_layers[name] = solved(none, left, None)
        up = up if self.branch_layers[name].accepted else none
        self.branches[name] = AdapterBranch(down=branch.down, up=up.cpu())
        acting = linear.weight.float() + up @ branch.down.to(up.device)
        linear.weight.data = acting.to(before.dtype)

    def _take_steps(self, sublayer: Sublayer, layer: DecoderLayer, index: int) -> dict[str, torch.Tensor]:
        """Train a sublayer; returns its new weights."""
        name = sublayer.module
        part = part_of(layer.part(name), lambda: self.compressed.run(index, self.compressed.states[0]))
        linears = {
            module.removeprefix(f"{name}."): linear
            for module, linear in layer.linear_layers().items()
            if module.startswith(f"{name}.")
        }
        full = f"{self.compressed.prefix(index)}{name}"
        matrices = {
            f"{own}.weight": Matrix(
                weight=linear.weight.data, keep_mask=self._mask(f"{full}.{own}.weight", linear)
            )
            for own, linear in linears.items()
        }
        with self._examples(sublayer, index) as examples:
            self.parts[full] = found = take_steps(part, matrices, examples, self.steps)
        if not found.accepted:
            return {}
        for own, linear in linears.items():
            linear.weight.data = found.weights[f"{own}.weight"]
        return {f"{name}.{own}": linear.weight.data for own, linear in linears.items()}

    @contextmanager
    def _examples(self, sublayer: Sublayer, index: int) -> Iterator[Examples]:
        """What a sublayer reads and should give, in files while the context lasts."""
        states = self.compressed.states
        shape = (len(states), states.shape[-2])
        files = [self.scratch / f"{name}.bin" for name in ("inputs", "targets")]
        inputs, targets = (mapped_states(file, (*shape, states.shape[-1]), torch.float32) for file in files)
        weights = torch.empty(*shape, 1)
        uses: dict[Use, list[int]] = {use: [] for use in get_args(Use)}
        for window, (theirs, ours) in enumerate(zip(self.original.states, states, strict=True)):
            uses[use_of(window, len(states))].append(window)
            inputs[window] = rows_of(sublayer.read(self.compressed, index, ours))
            targets[window] = self._as_compressed(self._rows(theirs)) - self._rows(ours)
            weights[window] = 1 / self._scale(theirs)
        try:
            yield Examples(inputs=inputs, targets=targets, weights=weights, uses=uses)
        finally:
            for file in files:
                file.unlink()

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
        return self._rows(states).square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)

    def _rows(self, states: torch.Tensor) -> torch.Tensor:
        return rows_of(states.to(self.compressed.device))

    def _as_compressed(self, stream: torch.Tensor) -> torch.Tensor:
        """The original's stream `[T, H]` in the compressed model's channels."""
        if self.basis is None:
            return _taken(stream, kept_channels(self.plan, ("hidden",), None))
        return stream @ self.basis.to(stream)


def _taken(rows_TO: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return rows_TO if kept is None else rows_TO[:, kept.to(rows_TO.device)]
