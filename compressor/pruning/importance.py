"""Importance of every prunable unit, from one forward pass, from the weights, or at random.

Activation importance follows Minitron (arXiv 2407.14679, section 2.2): no gradients, one pass over
the calibration set without the LM head, all axes at once.

* query head: the norm of its output, seen at the output projection's input;
* MLP neuron: the down-projection's input. The paper states the plain MLP's first matrix; behind a
  gate that input, after activation and gate, is the neuron's whole contribution;
* hidden channel: the outputs of both norms of every layer, each hook's score added;
* block of layers i..j-1: one minus the cosine of the block's input and output (block influence).

Departure: activations are aggregated over tokens by their L2 norm unless another aggregation is chosen, not
by their mean as published, since that left a lower perplexity before any training (docs/results).

Under `torchrun` every process runs its share of the windows; sums over windows, in float64 but for gradients,
are added up over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from compressor.calibration.hooks import Observer, observed
from compressor.calibration.statistics import BatchAggregate, cosine_sums, head_norms, over_sequence
from compressor.core.errors import UsageError, VerificationError
from compressor.core.processes import own_share, sum_over_processes
from compressor.data.tokenise import TokenArray
from compressor.models.adapter import ModelAdapter
from compressor.models.axes import AXES, PRUNABLE_AXES, Weight
from compressor.models.checkpoint import CheckpointReader
from compressor.models.dims import Dims
from compressor.models.load import load_model
from compressor.pruning.saved import IMPORTANCE_FILE
from compressor.recipe.compression import Aggregation, Prune
from compressor.runs.stage import StageContext

_Places = list[tuple[nn.Module, Observer]]


@dataclass(frozen=True, kw_only=True)
class ImportanceScores:
    """Scores of all units; higher is more important.

    Attributes:
        units: By prunable axis: `[num_units]`, or `[num_hidden_layers, num_units]` where every layer keeps
            units of its own.
        blocks: `[num_hidden_layers + 1, num_hidden_layers + 1]`; entry (i, j) is the importance of
            layers i..j-1 as one block, for i < j.
    """

    units: Mapping[str, torch.Tensor]
    blocks: torch.Tensor

    def __post_init__(self) -> None:
        for name, scores in self._tensors.items():
            if not torch.isfinite(scores).all():
                bad = torch.nonzero(~torch.isfinite(scores))[0].tolist()
                raise VerificationError("an importance score is not finite", where=f"{name}{bad}")

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self.units, "blocks": self.blocks}

    @classmethod
    def load(cls, directory: Path, dims: Dims) -> ImportanceScores:
        """Scores that were saved for a model of these dimensions.

        Raises:
            UsageError: when the directory holds none, or those of another model.
        """
        file = directory / IMPORTANCE_FILE
        hint = f"give a directory in which `compress-export prune` of this model left {IMPORTANCE_FILE}"
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                "the saved scores cannot be read", where=str(file), found=error, hint=hint
            ) from error
        size = dims.num_hidden_layers + 1
        expected = {"blocks": (size, size), **{name: _shape(name, dims) for name in PRUNABLE_AXES}}
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        if shapes != expected:
            what = "these scores are of another model"
            raise UsageError(what, where=str(file), expected=expected, found=shapes, hint=hint)
        return cls(units={name: found[name] for name in PRUNABLE_AXES}, blocks=found["blocks"])

    def of_layers(self) -> list[float]:
        """The importance of every single layer, with six digits."""
        return [float(f"{score:.6g}") for score in self.blocks.diagonal(1).tolist()]

    def save(self, directory: Path) -> None:
        """Write the scores as float64 safetensors."""
        tensors = {name: tensor.double().contiguous() for name, tensor in self._tensors.items()}
        save_file(tensors, directory / IMPORTANCE_FILE)


@dataclass(frozen=True, kw_only=True)
class ScoringInputs:
    """What an importance method may read; windows `[num_windows, seq_len]` only where it needs text.

    A method that needs text runs in every process of a run, and returns the same in each; others run in one.
    """

    checkpoint: Path
    dims: Dims
    settings: Prune
    context: StageContext
    windows: TokenArray | None


def activation_method(inputs: ScoringInputs) -> ImportanceScores:
    """`activation_importance` of the loaded model."""
    context, settings = inputs.context, inputs.settings
    assert inputs.windows is not None
    trust = context.trust_remote_code
    model = load_model(inputs.checkpoint, dtype=context.dtype, device=context.device, trust_remote_code=trust)
    with context.console.progress("importance", len(own_share(inputs.windows))) as tick:
        return activation_importance(
            ModelAdapter(model),
            inputs.windows,
            batch_aggregation=settings.batch_aggregation,
            sequence_aggregation=settings.sequence_aggregation,
            on_window=tick,
        )


def weight_magnitude_method(inputs: ScoringInputs) -> ImportanceScores:
    """`weight_magnitude_importance` of the checkpoint."""
    with CheckpointReader(inputs.checkpoint) as reader:
        return weight_magnitude_importance(reader, inputs.dims)


def random_method(inputs: ScoringInputs) -> ImportanceScores:
    """`random_importance` from the run's seed."""
    return random_importance(inputs.dims, seed=inputs.context.seed)


@torch.no_grad()
def activation_importance(
    adapter: ModelAdapter,
    windows: TokenArray,
    *,
    batch_aggregation: Aggregation = "l2",
    sequence_aggregation: Aggregation = "l2",
    on_window: Callable[[], None] = lambda: None,
) -> ImportanceScores:
    """Score all axes in one forward pass over token ids `[num_windows, seq_len]`, each window one sample.

    The processes of a run share the windows.
    A score that is not finite is a VerificationError.
    """
    num_layers, states = adapter.dims.num_hidden_layers, list[torch.Tensor]()
    aggregates: dict[str, list[BatchAggregate]] = {axis: [] for axis in PRUNABLE_AXES}

    def observer(axis: str) -> Observer:
        aggregate = BatchAggregate(batch_aggregation)
        aggregates[axis].append(aggregate)
        num_heads = adapter.dims.units(axis) if AXES[axis].is_head else None

        def observe(x: torch.Tensor) -> None:
            units = x if num_heads is None else head_norms(x, num_heads)
            aggregate.add(over_sequence(units, sequence_aggregation))

        return observe

    inputs, outputs = _places(adapter, observer, lambda x: states.append(x[0]))
    similarity = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64)
    device = next(adapter.body.parameters()).device
    with observed(inputs=inputs, outputs=outputs):
        for window in own_share(windows):
            adapter.body(torch.from_numpy(window.astype("int64"))[None].to(device), use_cache=False)
            similarity += cosine_sums(states)
            states.clear()
            on_window()
    for axis, found in aggregates.items():
        for aggregate in found:
            aggregate.sum_over_processes_(adapter.dims.units(axis))
    similarity = sum_over_processes(similarity)
    scores = {name: torch.stack([one.result() for one in found]) for name, found in aggregates.items()}
    units = {name: rows if AXES[name].is_per_layer else rows.sum(0) for name, rows in scores.items()}
    return ImportanceScores(units=units, blocks=1 - similarity / windows.size)


def _places(
    adapter: ModelAdapter, observer: Callable[[str], Observer], keep_state: Observer
) -> tuple[_Places, _Places]:
    """The modules whose inputs, and those whose outputs, are observed; a new observer for each."""
    inputs: _Places = []
    outputs: _Places = []
    for layer in adapter.layers:
        inputs.append((layer.module, keep_state))
        for weight in layer.family.layer:
            module = layer.part(weight.module)
            if weight.columns is not None and weight.columns != "hidden":
                inputs.append((module, observer(weight.columns)))
            elif weight.columns is None and weight.kind == "weight" and "hidden" in weight.rows.values():
                outputs.append((module, observer("hidden")))
    outputs.append((adapter.layers[-1].module, keep_state))
    return inputs, outputs


def weight_magnitude_importance(reader: CheckpointReader, dims: Dims) -> ImportanceScores:
    """Score units by the L2 norm of the matrices' weights that a removal would delete."""
    found = _summed(lambda name: reader.tensor(name).double().square(), dims)
    return ImportanceScores(
        units={name: total.sqrt() for name, total in found.units.items()}, blocks=found.blocks.sqrt()
    )


def taylor_method(inputs: ScoringInputs) -> ImportanceScores:
    """First-order Taylor scores (LLM-Pruner, arXiv 2305.11627): the sum of |weight * gradient| over a unit.

    The gradient is that of the mean cross-entropy over all calibration windows. Weights and gradients of the
    whole model are in memory, in float32.
    """
    context = inputs.context
    assert inputs.windows is not None
    trust = context.trust_remote_code
    model = load_model(inputs.checkpoint, dtype="float32", device=context.device, trust_remote_code=trust)
    model.requires_grad_(requires_grad=True)
    windows = own_share(inputs.windows)
    with context.console.progress("importance", len(windows)) as tick:
        for window in windows:
            ids = torch.from_numpy(window.astype("int64"))[None].to(context.device)
            loss = model(ids, labels=ids, use_cache=False).loss / len(inputs.windows)
            loss.backward()
            tick()

    def product(name: str) -> torch.Tensor:
        weight: torch.nn.Parameter = model.get_parameter(name)
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad  # none of no window
        total = sum_over_processes(gradient.double().cpu())
        return (weight.detach().double().cpu() * total).abs()

    return _summed(product, inputs.dims)


def _summed(score: Callable[[str], torch.Tensor], dims: Dims) -> ImportanceScores:
    """Scores of single weights, by full name, added up over all matrix weights that a removal would delete.

    A unit has its rows and columns of every matrix, LM head included: LLM-Pruner's coupled group (arXiv
    2305.11627, section 3.1). A key/value head goes only with all its query heads, each of which has an equal
    share of its rows: together they count all that goes with the group, a query head with a key/value head
    of its own counts that one whole, and the order within a group stays. Norms and biases do not count.
    """
    family, num_layers = dims.family, dims.num_hidden_layers
    totals = {name: torch.zeros(_shape(name, dims), dtype=torch.float64) for name in PRUNABLE_AXES}
    of_layers = torch.zeros(num_layers, dtype=torch.float64)
    for index in range(num_layers):
        for weight in family.linears:
            matrix = score(f"{family.layers}.{index}.{weight.name}")
            of_layers[index] += matrix.sum()
            _add_(totals, matrix, weight, index, dims)
    for module in (family.embedding, *([] if dims.tie_word_embeddings else [family.lm_head])):
        totals["hidden"] += score(f"{module}.weight").sum(0)
    until = torch.cat([torch.zeros(1, dtype=torch.float64), of_layers.cumsum(0)])
    return ImportanceScores(units=totals, blocks=(until[None, :] - until[:, None]).clamp_min(0))


def _add_(
    totals: dict[str, torch.Tensor], matrix: torch.Tensor, weight: Weight, layer: int, dims: Dims
) -> None:
    """Add the scores of one matrix to the units of its rows and columns; those of a group to its members."""
    assert weight.columns is not None
    by_row, by_column = matrix.sum(1), matrix.sum(0)
    parts = by_row.split([dims.size(axis) for axis in weight.rows.values()])
    for axis, sums in (*zip(weight.rows.values(), parts, strict=True), (weight.columns, by_column)):
        of_units = sums.view(dims.units(axis), -1).sum(1)
        name = AXES[axis].members or axis
        group_size = dims.units(name) // dims.units(axis)
        row = totals[name][layer] if AXES[name].is_per_layer else totals[name]
        row += (of_units / group_size).repeat_interleave(group_size)


def random_importance(dims: Dims, *, seed: int) -> ImportanceScores:
    """Uniform random scores: the baseline that every other importance must beat."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    units = {name: draw(*_shape(name, dims)) for name in PRUNABLE_AXES}
    return ImportanceScores(units=units, blocks=draw(dims.num_hidden_layers + 1, dims.num_hidden_layers + 1))


def _shape(axis: str, dims: Dims) -> tuple[int, ...]:
    """The shape of an axis's scores."""
    units = (dims.units(axis),)
    return (dims.num_hidden_layers, *units) if AXES[axis].is_per_layer else units
