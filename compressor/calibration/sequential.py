"""Block by block through a model: one decoder layer in memory, activations on disk.

Every layer sees the calibration windows twice: once as it is, to gather its linear layers' input
statistics, and once as the visitor left it, to make the inputs of the next layer. So each layer is
calibrated on what the layers before it really compute.

Legend: T tokens, C input channels of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compressor.calibration.hooks import observed
from compressor.calibration.rewrite import keep_weights
from compressor.calibration.stream import Stream
from compressor.core.errors import VerificationError
from compressor.models.adapter import DecoderLayer

STATES_FILE = "hidden_states.bin"


@dataclass(kw_only=True)
class Gram:
    """Sum over tokens of x xᵀ, float32 `[C, C]`, for the inputs x of one or several linear layers."""

    total: torch.Tensor
    num_tokens: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add inputs `[..., C]`, outside autocast."""
        with torch.autocast(inputs.device.type, enabled=False):
            x_TC = inputs.detach().flatten(0, -2).float()
            self.total.addmm_(x_TC.T, x_TC)
        self.num_tokens += x_TC.shape[0]


@dataclass(frozen=True, kw_only=True)
class LayerVisit:
    """What a visitor sees of a layer.

    Attributes:
        prefix: Of its tensors' names in the checkpoint, with a dot.
        linears: The linear layers by name relative to the layer, weights in the compute dtype.
        grams: Statistics of their inputs; layers with one input share one.
        beside: Matrices that act beside new weights and are not part of them, by name; the visitor's to fill.
    """

    index: int
    prefix: str
    linears: dict[str, nn.Linear]
    grams: dict[str, Gram]
    beside: dict[str, torch.Tensor] = field(default_factory=dict)


# Returns the new weights of some linear layers, by name relative to the layer.
Visitor = Callable[[LayerVisit], dict[str, torch.Tensor]]


@torch.no_grad()
def run_sequentially(
    checkpoint: Path,
    windows: npt.NDArray[np.uint32],
    visit: Visitor,
    *,
    scratch: Path,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
    on_window: Callable[[], None] = lambda: None,
) -> dict[str, Path]:
    """Walk the decoder layers of a checkpoint, giving each its visitor's weights before going on.

    Windows are `[num_windows, seq_len]`; `scratch`, which exists, takes hidden states and changed weights;
    `dtype` is that of weights and activations; `on_window` follows each window of each layer's first pass.

    Returns:
        Full names of the changed weights, and the file in `scratch` that holds each.

    Raises:
        VerificationError: when a statistic is not finite, naming the linear layer.
    """
    changed: dict[str, Path] = {}
    with Stream(
        checkpoint,
        windows,
        scratch / STATES_FILE,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    ) as stream:
        for index in range(len(stream.adapter.layers)):
            with stream.layer(index) as layer:
                prefix, linears = stream.prefix(index), layer.linear_layers()
                grams = _gather(stream, layer, index, device=device, on_window=on_window)
                _refuse_nonfinite(prefix, grams)
                visited = LayerVisit(index=index, prefix=prefix, linears=linears, grams=grams)
                replaced = visit(visited)
                grams.clear()
                for name, weight in replaced.items():
                    acting = weight + visited.beside[name] if name in visited.beside else weight
                    linears[name].weight.data = acting.to(device=device, dtype=dtype)
                changed |= keep_weights(replaced, prefix, scratch / f"layer-{index}.safetensors")
                stream.advance(index)
    return changed


def _gather(
    stream: Stream, layer: DecoderLayer, index: int, *, device: str, on_window: Callable[[], None]
) -> dict[str, Gram]:
    """One pass of the layer as it is: the Gram matrix of every linear layer's input."""
    linears = layer.linear_layers()
    grams: dict[str, Gram] = {}
    inputs = []
    for names in layer.family.sharing_input:
        size = linears[names[0]].in_features
        gram = Gram(total=torch.zeros(size, size, device=device))
        grams |= dict.fromkeys(names, gram)
        inputs.append((linears[names[0]], gram.add))
    with observed(inputs=inputs):
        for states in stream.states:
            stream.run(index, states)
            on_window()
    return grams


def _refuse_nonfinite(prefix: str, grams: dict[str, Gram]) -> None:
    for name, gram in grams.items():
        if not torch.isfinite(gram.total).all():
            raise VerificationError("an activation is not finite", where=prefix + name, found="NaN or inf")
