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

Legend: T tokens, I inputs, O outputs, H hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import get_args

import torch
from torch import nn

from compressor.calibration.hooks import observed
from compressor.calibration.rewrite import keep_weights
from compressor.calibration.stream import Stream, mapped_states
from compressor.core.errors import VerificationError
from compressor.models.adapter import DecoderLayer
from compressor.models.axes import Weight
from compressor.models.sparse.low_rank import AdapterBranch
from compressor.pruning.plan import PrunePlan
from compressor.pruning.slicing import kept_channels
from compressor.repair.branch import grouped, left_after
from compressor.repair.least_squares import NotPositiveDefiniteError, Sums, solve
from compressor.repair.local_steps import Examples, Matrix, Stepped, Use, part_of, take_steps

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Of every so many windows one chooses the ridge, one accepts, and the rest is fitted.
_PERIOD = 8
_OUTLIER = 10.0
# Layers whose outputs are hidden channels write to the residual stream.
_STREAM = "hidden"


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


@dataclass(kw_only=True)
class Walk:
    """Two models side by side, and what was found so far.

    Attributes:
        original: Hidden states of the model that shows what is wanted.
        compressed: Those of the model that is repaired.
        after: The original's states before the next layer that is kept.
        plan: Which layers and units of the original stayed.
        keep_mask: Which weights exist, by full name; None: all.
        scratch: Where changed weights go.
        on_layer: Called after every layer of the compressed model.
        changed: Full names of the changed weights, and the file that holds each.
        layers: What became of every linear layer, by full name.
        branches: Low-rank branches beside sparse weights, by their layers' full names; each is fitted again
            to the error that its repaired weight leaves.
        branch_layers: What became of every branch; one that is not accepted adds nothing.
        steps: Local gradient steps of attention and of the MLP, after least squares; not beside branches.
        parts: What became of attention and MLP of every layer by such steps, by full name.
        outlier_tokens: Largest number of tokens, over layers, whose stream is ten times the median.
        solve_seconds: Spent in solving.
    """

    original: Stream
    compressed: Stream
    after: torch.Tensor
    plan: PrunePlan
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
        self._look_ahead(0, kept[0])
        for index, (own, end) in enumerate(pairwise(kept)):
            self.original.states.copy_(self.after)
            self._look_ahead(own, end)
            prefix = self.compressed.prefix(index)
            with self.original.layer(own), self.compressed.layer(index) as layer:
                replaced: dict[str, torch.Tensor] = {}
                for group in _groups(layer):
                    replaced |= self._repair(group, layer, index, own)
                    if self.steps and _writes(group):
                        replaced |= self._take_steps(group, layer, index, own)
                self.changed |= keep_weights(replaced, prefix, self.scratch / f"layer-{index}.safetensors")
                for states in self.compressed.states:
                    states.copy_(stream_after(self.compressed, index, states))
            self.on_layer()

    def _look_ahead(self, first: int, end: int) -> None:
        """Send the original's states through layers first to end - 1, into `after`."""
        self.after.copy_(self.original.states)
        for index in range(first, end):
            with self.original.layer(index):
                for states in self.after:
                    states.copy_(stream_after(self.original, index, states))

    def _repair(
        self, group: list[Weight], layer: DecoderLayer, index: int, own: int
    ) -> dict[str, torch.Tensor]:
        """Solve the linear layers that share an input, and give those that improve their new weights."""
        sums = self._gather(group, layer, index, own)
        started = monotonic()
        replaced: dict[str, torch.Tensor] = {}
        for weight, of_use in zip(group, sums, strict=True):
            name = f"{self.compressed.prefix(index)}{weight.name}"
            linear = layer.linear_layers()[weight.module]
            if not all(math.isfinite(part.error) and part.gram.isfinite().all() for part in of_use.values()):
                raise VerificationError("an activation is not finite", where=name, found="NaN or inf")
            before = linear.weight.data
            repaired, self.layers[name] = solved(linear.weight, of_use, self.keep_mask(name))
            if self.layers[name].accepted:
                linear.weight.data = repaired
                replaced[weight.module] = repaired
            self._fit_branch(name.removesuffix(".weight"), linear, before, of_use)
        self.solve_seconds += monotonic() - started
        return replaced

    def _fit_branch(self, name: str, linear: nn.Linear, before: torch.Tensor, sums: dict[Use, Sums]) -> None:
        """Fit a layer's branch, if it has one, to what its weight leaves; layers after it see both act."""
        branch = self.branches.get(name)
        if branch is None:
            return
        change = linear.weight.double() - before.double()
        left = {use: grouped(left_after(part, change), branch.group_size) for use, part in sums.items()}
        none = torch.zeros(linear.out_features, branch.rank, device=linear.weight.device)
        up, self.branch_layers[name] = solved(none, left, None)
        up = up if self.branch_layers[name].accepted else none
        self.branches[name] = AdapterBranch(down=branch.down, up=up.cpu())
        acting = linear.weight.float() + up @ branch.down.to(up.device)
        linear.weight.data = acting.to(before.dtype)

    def _take_steps(
        self, group: list[Weight], layer: DecoderLayer, index: int, own: int
    ) -> dict[str, torch.Tensor]:
        """Train the part that ends in this group; returns its new weights."""
        name, prefix = group[0].module.rpartition(".")[0], self.compressed.prefix(index)
        part = part_of(layer.part(name), lambda: self.compressed.run(index, self.compressed.states[0]))
        linears = {
            module.removeprefix(f"{name}."): linear
            for module, linear in layer.linear_layers().items()
            if module.startswith(f"{name}.")
        }
        matrices = {
            f"{own_name}.weight": Matrix(
                weight=linear.weight.data, keep_mask=self.keep_mask(f"{prefix}{name}.{own_name}.weight")
            )
            for own_name, linear in linears.items()
        }
        with self._examples(group, layer, index, own) as examples:
            self.parts[f"{prefix}{name}"] = found = take_steps(part, matrices, examples, self.steps)
        if not found.accepted:
            return {}
        for own_name, linear in linears.items():
            linear.weight.data = found.weights[f"{own_name}.weight"]
        return {f"{name}.{own_name}": linear.weight.data for own_name, linear in linears.items()}

    @contextmanager
    def _examples(self, group: list[Weight], layer: DecoderLayer, index: int, own: int) -> Iterator[Examples]:
        """What the part that ends in this group reads and should give, in files while the context lasts."""
        norm = layer.family.module("attention_norm" if "o" in group[0].rows else "mlp_norm")
        states = self.compressed.states
        shape = (len(states), states.shape[-2])
        files = [self.scratch / f"{name}.bin" for name in ("inputs", "targets")]
        inputs, targets = (mapped_states(file, (*shape, states.shape[-1]), torch.float32) for file in files)
        weights = torch.empty(*shape, 1)
        uses: dict[Use, list[int]] = {use: [] for use in get_args(Use)}
        for window in range(len(states)):
            uses[use_of(window, len(states))].append(window)
            inputs[window] = seen_in(self.compressed, index, states[window], {"": (norm, "output")})[""]
            wanted, stream = self._wanted(group, own, window)
            targets[window] = wanted[0] - self._seen(group, layer, index, window)[1]
            weights[window] = 1 / stream.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
        try:
            yield Examples(inputs=inputs, targets=targets, weights=weights, uses=uses)
        finally:
            for file in files:
                file.unlink()

    def _gather(
        self, group: list[Weight], layer: DecoderLayer, index: int, own: int
    ) -> list[dict[Use, Sums]]:
        """The sums of every weight of a group, over the windows of each use."""
        linears = [layer.linear_layers()[weight.module] for weight in group]
        device, num_inputs = linears[0].weight.device, linears[0].in_features
        sums: list[dict[Use, Sums]] = [{} for _ in group]
        for use in get_args(Use):
            gram = torch.zeros(num_inputs, num_inputs, device=device)
            for linear, of_use in zip(linears, sums, strict=True):
                of_use[use] = Sums(gram=gram, cross=torch.zeros_like(linear.weight, dtype=torch.float32))
        scales = []
        for window in range(len(self.after)):
            use = use_of(window, len(self.after))
            inputs, before = self._seen(group, layer, index, window)
            wanted, stream = self._wanted(group, own, window)
            scale = stream.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
            scales.append(scale)
            weighted = inputs / scale
            sums[0][use].gram.addmm_(weighted.T, weighted)
            for linear, target, of_use in zip(linears, wanted, sums, strict=True):
                given = linear(inputs.to(linear.weight.dtype)).float()
                missing = target - before - given
                of_use[use].add(weighted, missing / scale)
        found = torch.cat(scales)
        self.outlier_tokens = max(self.outlier_tokens, int((found > _OUTLIER * found.median()).sum()))
        return sums

    def _seen(
        self, group: list[Weight], layer: DecoderLayer, index: int, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a group reads `[T, I]`, and the compressed model's stream that its output is added to.

        The latter is 0 where the output goes elsewhere.
        """
        states = self.compressed.states[window]
        places = {"reads": (group[0].module, "input")}
        if "down" in group[0].rows:
            places["o"] = (layer.family.module("o"), "output")
        seen = seen_in(self.compressed, index, states, places)
        inputs = seen["reads"]
        if not _writes(group):
            return inputs, torch.zeros(1, 1, device=inputs.device)
        before = _rows(states.to(inputs.device))
        return inputs, before + seen["o"] if "o" in seen else before

    def _wanted(self, group: list[Weight], own: int, window: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What each weight of a group should give `[T, O]`, and the original's stream `[T, H]` there."""
        states, family = self.original.states[window], self.plan.source.family
        if not _writes(group):
            places = {weight.module: (weight.module, "output") for weight in group}
            # `reads` names the norm, which the original's stream goes into.
            places["stream"] = (family.module(str(group[0].reads)), "input")
            seen = seen_in(self.original, own, states, places)
            rows = [kept_channels(self.plan, tuple(weight.rows.values()), own) for weight in group]
            targets = [_taken(seen[weight.module], kept) for weight, kept in zip(group, rows, strict=True)]
            return targets, seen["stream"]
        if "down" in group[0].rows:
            stream = _rows(self.after[window].to(self.compressed.device))
        else:
            places = {"o": (family.module("o"), "output")}
            stream = seen_in(self.original, own, states, places)["o"] + _rows(
                states.to(self.compressed.device)
            )
        return [_taken(stream, kept_channels(self.plan, (_STREAM,), None))], stream


def use_of(window: int, num_windows: int) -> Use:
    """What a window is for; at least three are needed."""
    period = min(_PERIOD, num_windows)
    uses: dict[int, Use] = {period // 2: "choose", period - 1: "accept"}
    return uses.get(window % period, "fit")


def _groups(layer: DecoderLayer) -> list[list[Weight]]:
    """A layer's matrices in forward order, those with one input together."""
    by_module = {weight.module: weight for weight in layer.family.linears}
    return [[by_module[name] for name in names] for names in layer.family.sharing_input]


def _writes(group: list[Weight]) -> bool:
    return set(group[0].rows.values()) == {_STREAM}


def _taken(rows_TO: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return rows_TO if kept is None else rows_TO[:, kept.to(rows_TO.device)]


def _rows(states: torch.Tensor) -> torch.Tensor:
    return states.flatten(0, -2).float()


class _SeenError(Exception):
    """Everything that was asked for has been seen; the rest of the layer need not run."""


def seen_in(
    stream: Stream, index: int, states: torch.Tensor, places: dict[str, tuple[str, str]]
) -> dict[str, torch.Tensor]:
    """What passes places of the layer in use, as float32 rows `[T, channels]`; the rest of it is not run.

    Args:
        stream: Whose layer.
        index: Of the layer.
        states: Its input.
        places: By the name to return: a module's name relative to the layer, and "input" or "output".
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
    for name, (module, side) in places.items():
        hooks[side].append((layer.part(module), observer(name)))
    with observed(inputs=hooks["input"], outputs=hooks["output"]), suppress(_SeenError):
        stream.run(index, states)
    return seen


def stream_after(stream: Stream, index: int, states: torch.Tensor) -> torch.Tensor:
    """The stream after the layer in use, in the states' shape, added up in float32.

    In 16 bits the sums would be off by as much as what a repair is to find.
    """
    family = stream.adapter.family
    seen = seen_in(stream, index, states, {part: (family.module(part), "output") for part in ("o", "down")})
    return (_rows(states.to(stream.device)) + seen["o"] + seen["down"]).view_as(states)


def solved(
    weight: torch.Tensor, sums: dict[Use, Sums], keep_mask: torch.Tensor | None
) -> tuple[torch.Tensor, Repaired]:
    """The repaired weight in its own dtype, and whether it is better than what is there.

    Args:
        weight: `[O, I]`; not changed.
        sums: Of the windows of each use.
        keep_mask: bool `[O, I]`: weights outside it stay 0.
    """

    def error(ridge: float) -> float:
        try:
            return sums["choose"].error_after(solve(sums["fit"], ridge, keep_mask))
        except NotPositiveDefiniteError:
            return math.inf

    ridge = min(RIDGES, key=error)
    before = weight.double()
    try:
        change = solve(sums["fit"] + sums["choose"], ridge, keep_mask)
    except NotPositiveDefiniteError:
        return weight, Repaired(accepted=False, ridge=ridge, error_ratio=None)
    repaired = (before + change).to(weight.dtype)
    error_before = sums["accept"].error
    ratio = sums["accept"].error_after(repaired.double() - before) / error_before if error_before else None
    return repaired, Repaired(accepted=ratio is not None and ratio < 1, ridge=ridge, error_ratio=ratio)
