"""Importance of every prunable unit, from one forward pass, from the weights, or at random.

Activation importance follows Minitron (arXiv 2407.14679, section 2.2): no gradients, one pass over
the calibration set without the LM head, all axes at once.

* query head: the norm of its output, seen at the output projection's input;
* MLP neuron: the down-projection's input. The paper states the plain MLP's first matrix; behind a
  gate that input, after activation and gate, is the neuron's whole contribution;
* hidden channel: the outputs of both norms of every layer, each hook's score added;
* block of layers i..j-1: one minus the cosine of the block's input and output (block influence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compressor.calibration.hooks import Observer, observed
from compressor.calibration.statistics import BatchAggregate, cosine_sums, head_norms, over_sequence
from compressor.core.errors import VerificationError
from compressor.data.tokenise import TokenArray
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import CheckpointReader
from compressor.models.dims import Dims
from compressor.recipe.recipe import Aggregation

IMPORTANCE_FILE = "importance.safetensors"


@dataclass(frozen=True, kw_only=True)
class ImportanceScores:
    """Scores of all axes; higher is more important.

    Attributes:
        hidden: `[hidden_size]`, one score for the whole network.
        intermediate: `[num_hidden_layers, intermediate_size]`.
        heads: `[num_hidden_layers, num_attention_heads]`.
        blocks: `[num_hidden_layers + 1, num_hidden_layers + 1]`; entry (i, j) is the importance of
            layers i..j-1 as one block, for i < j.
    """

    hidden: torch.Tensor
    intermediate: torch.Tensor
    heads: torch.Tensor
    blocks: torch.Tensor

    def __post_init__(self) -> None:
        for name, scores in self._tensors().items():
            if not torch.isfinite(scores).all():
                bad = torch.nonzero(~torch.isfinite(scores))[0].tolist()
                raise VerificationError("an importance score is not finite", where=f"{name}{bad}")

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "heads": self.heads,
            "blocks": self.blocks,
        }

    def save(self, directory: Path) -> None:
        """Write the scores as float64 safetensors."""
        tensors = {name: tensor.double().contiguous() for name, tensor in self._tensors().items()}
        save_file(tensors, directory / IMPORTANCE_FILE)


def load_importance(directory: Path) -> ImportanceScores:
    """Read scores written by `ImportanceScores.save`."""
    return ImportanceScores(**load_file(directory / IMPORTANCE_FILE))


@torch.no_grad()
def activation_importance(
    adapter: ModelAdapter,
    windows: TokenArray,
    *,
    batch_aggregation: Aggregation = "l2",
    sequence_aggregation: Aggregation = "mean",
    on_window: Callable[[], None] = lambda: None,
) -> ImportanceScores:
    """Score all axes in one forward pass over the calibration windows.

    Args:
        adapter: The model, in evaluation mode.
        windows: Token ids, `[num_windows, seq_len]`; each window is one sample.
        batch_aggregation: Over windows.
        sequence_aggregation: Over tokens.
        on_window: Called after every window.

    Raises:
        VerificationError: when a score is not finite.
    """
    dims, layers = adapter.dims, adapter.layers
    num_layers = dims.num_hidden_layers
    norms = [BatchAggregate(batch_aggregation) for _ in range(2 * num_layers)]
    neurons = [BatchAggregate(batch_aggregation) for _ in range(num_layers)]
    heads = [BatchAggregate(batch_aggregation) for _ in range(num_layers)]
    states: list[torch.Tensor] = []

    def channels(aggregate: BatchAggregate) -> Observer:
        return lambda x: aggregate.add(over_sequence(x, sequence_aggregation))

    def head_outputs(aggregate: BatchAggregate) -> Observer:
        return lambda x: aggregate.add(
            over_sequence(head_norms(x, dims.num_attention_heads), sequence_aggregation)
        )

    def keep_state(x: torch.Tensor) -> None:
        states.append(x[0])

    inputs: list[tuple[nn.Module, Observer]]
    inputs = [(layer.down_proj, channels(neurons[i])) for i, layer in enumerate(layers)]
    inputs += [(layer.o_proj, head_outputs(heads[i])) for i, layer in enumerate(layers)]
    inputs += [(layer.module, keep_state) for layer in layers]
    outputs = [(layer.attention_norm, channels(norms[2 * i])) for i, layer in enumerate(layers)]
    outputs += [(layer.mlp_norm, channels(norms[2 * i + 1])) for i, layer in enumerate(layers)]
    outputs.append((layers[-1].module, keep_state))

    similarity = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64)
    device = next(adapter.body.parameters()).device
    with observed(inputs=inputs, outputs=outputs):
        for window in windows:
            adapter.body(torch.from_numpy(window.astype("int64"))[None].to(device), use_cache=False)
            similarity += cosine_sums(states)
            states.clear()
            on_window()
    return ImportanceScores(
        hidden=torch.stack([norm.result() for norm in norms]).sum(0),
        intermediate=torch.stack([neuron.result() for neuron in neurons]),
        heads=torch.stack([head.result() for head in heads]),
        blocks=1 - similarity / windows.size,
    )


def weight_magnitude_importance(reader: CheckpointReader, dims: Dims) -> ImportanceScores:
    """Score units by the L2 norm of all weights that a removal would delete."""
    family = dims.family
    hidden = torch.zeros(dims.hidden_size, dtype=torch.float64)
    intermediate = torch.zeros(dims.num_hidden_layers, dims.intermediate_size, dtype=torch.float64)
    heads = torch.zeros(dims.num_hidden_layers, dims.num_attention_heads, dtype=torch.float64)
    layer_squares = torch.zeros(dims.num_hidden_layers, dtype=torch.float64)
    for index in range(dims.num_hidden_layers):
        for role in family.linear_layers:
            squares = reader.tensor(f"{family.layers}.{index}.{role}.weight").double().square()
            layer_squares[index] += squares.sum()
            writes_residual = role in (family.o_proj, family.down_proj)
            hidden += squares.sum(1 if writes_residual else 0)
            inner = squares.sum(0 if writes_residual else 1)
            if role in (family.q_proj, family.o_proj):
                heads[index] += inner.view(dims.num_attention_heads, -1).sum(1)
            elif role in (*family.mlp_inputs, family.down_proj):
                intermediate[index] += inner
    hidden += reader.tensor(f"{family.embedding}.weight").double().square().sum(0)
    until = torch.cat([torch.zeros(1, dtype=torch.float64), layer_squares.cumsum(0)])
    return ImportanceScores(
        hidden=hidden.sqrt(),
        intermediate=intermediate.sqrt(),
        heads=heads.sqrt(),
        blocks=(until[None, :] - until[:, None]).clamp_min(0).sqrt(),
    )


def random_importance(dims: Dims, *, seed: int) -> ImportanceScores:
    """Uniform random scores: the baseline that every other importance must beat."""
    generator = torch.Generator().manual_seed(seed)
    layers = dims.num_hidden_layers

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return ImportanceScores(
        hidden=draw(dims.hidden_size),
        intermediate=draw(layers, dims.intermediate_size),
        heads=draw(layers, dims.num_attention_heads),
        blocks=draw(layers + 1, layers + 1),
    )
