"""All masks of one model: drawn for a step, held to a shape, and read as a plan."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from compressor.core.errors import UsageError
from compressor.masks.applied import LAYERS, MaskValues, kept_mask
from compressor.masks.constraint import Constraint
from compressor.masks.gates import Gates, MaskKind, make_gates
from compressor.models.axes import PRUNABLE_AXES
from compressor.models.dims import Dims
from compressor.pruning.importance import ImportanceScores
from compressor.pruning.plan import PrunePlan, make_plan

# Steps of one seed, whose noise must not be another seed's.
_MAX_STEPS = 1 << 31


class MaskSet(nn.Module):
    """Masks of every axis that a student is smaller in, each with its constraint.

    Attributes:
        gates: By axis, and `layers`. Rows are layers and their key/value groups, as far as the axis has them.
        constraints: By the same names.
    """

    def __init__(self, source: Dims, student: Dims, *, kind: MaskKind, seed: int) -> None:
        """Masks near 1.

        Raises:
            UsageError: when the student is as large as the source.
        """
        super().__init__()
        self._source, self._student, self._seed = source, student, seed
        self.gates, self.constraints = nn.ModuleDict(), nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        for name, (num_rows, num_units, num_kept) in _shapes(source, student).items():
            self.gates[name] = make_gates(kind, (num_rows, num_units), generator)
            self.constraints[name] = Constraint(num_rows, 1 - num_kept / num_units)
        if not self.gates:
            raise UsageError(
                "the student is as large as the model, so there is nothing for masks to remove",
                where="--target, --shape",
                hint="choose a smaller --target or --shape",
            )

    def drawn(self, step: int) -> MaskValues:
        """The masks of the step after so many, with gradients; the same whenever it is asked."""
        generator = torch.Generator().manual_seed(self._seed * _MAX_STEPS + step)
        values = {}
        for name, gates in self._gates().items():
            noise = torch.rand(gates.raw.shape, generator=generator)
            values[name] = gates.drawn(noise.to(gates.raw))
        return self._values(values)

    def after_step_(self) -> None:
        """Keep every parameter where it can still move."""
        for gates in self._gates().values():
            gates.after_step_()

    def penalty(self, *, progress: float, warmth: float) -> torch.Tensor:
        """What the constraints add to the loss, see `Constraint` and `Gates.count`."""
        penalties = [
            self.constraints[name](gates.count(progress), warmth) for name, gates in self._gates().items()
        ]
        return torch.stack(penalties).sum()

    @torch.no_grad()
    def expected(self, *, progress: float) -> MaskValues:
        """Settled masks of which as many as are expected to be 0 are 0: for measuring on the way."""
        values = {}
        for name, gates in self._gates().items():
            num_kept = gates.count(progress).sum(1).round().long().clamp_min(1)
            order = torch.sort(gates.scores(), dim=1, descending=True, stable=True).indices
            place = torch.empty_like(order).scatter_(
                1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
            )
            values[name] = gates.settled() * (place < num_kept[:, None])
        return self._values(values)

    @torch.no_grad()
    def largest_misses(self, *, progress: float) -> dict[str, float]:
        """How far, in units, the expected number of any row is from its target, by axis."""
        found = {}
        for name, gates in self._gates().items():
            share = cast(Constraint, self.constraints[name]).share
            units = gates.raw.shape[1]
            miss = gates.count(progress).sum(1) - units * (1 - share)
            found[name] = round(float(miss.abs().max()), 3)
        return found

    @torch.no_grad()
    def plan(self, importance: str) -> PrunePlan:
        """The plan that keeps, of every row, exactly the student's number of best-scored units."""
        source, scores = self._source, self._scores()
        units = {
            name: scores.units.get(
                name, torch.zeros((source.num_hidden_layers,) * axis.is_per_layer + (source.units(name),))
            )
            for name, axis in PRUNABLE_AXES.items()
        }
        size = source.num_hidden_layers + 1
        blocks = torch.zeros(size, size, dtype=torch.float64)
        if scores.layers is not None:
            blocks[range(size - 1), range(1, size)] = scores.layers
        found = ImportanceScores(units=units, blocks=blocks)
        return make_plan(source, self._student, found, importance=importance, depth="scattered")

    @torch.no_grad()
    def final(self, plan: PrunePlan) -> MaskValues:
        """The settled masks of what a plan keeps, 0 elsewhere, on the CPU."""
        kept = kept_mask(plan).named()
        settled = self._values({name: gates.settled() for name, gates in self._gates().items()}).named()
        return _of_named({name: settled[name].cpu() * kept[name] for name in settled})

    def _scores(self) -> MaskValues:
        scores = {name: gates.scores().cpu().double() for name, gates in self._gates().items()}
        return self._values(scores)

    def _gates(self) -> dict[str, Gates]:
        return {name: cast(Gates, gates) for name, gates in self.gates.items()}

    def _values(self, rows: dict[str, torch.Tensor]) -> MaskValues:
        """Rows of every axis in the shape that the model is masked by."""
        shaped = {
            name: tensor.view(self._source.num_hidden_layers, -1)
            if name in PRUNABLE_AXES and PRUNABLE_AXES[name].is_per_layer
            else tensor.view(-1)
            for name, tensor in rows.items()
        }
        return _of_named(shaped)


def _of_named(named: dict[str, torch.Tensor]) -> MaskValues:
    units = {name: tensor for name, tensor in named.items() if name != LAYERS}
    return MaskValues(units=units, layers=named.get(LAYERS))


def _shapes(source: Dims, student: Dims) -> dict[str, tuple[int, int, int]]:
    """Rows, units of a row, and how many of these stay, of everything that the student has fewer of."""
    found = {}
    for name, axis in PRUNABLE_AXES.items():
        if student.units(name) < source.units(name):
            groups: int = getattr(source, axis.groups) if axis.groups else 1
            num_rows = groups * (source.num_hidden_layers if axis.is_per_layer else 1)
            found[name] = (num_rows, source.units(name) // groups, student.units(name) // groups)
    if student.num_hidden_layers < source.num_hidden_layers:
        found[LAYERS] = (1, source.num_hidden_layers, student.num_hidden_layers)
    return found
