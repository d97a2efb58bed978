"""Block by block through a model: one decoder layer in memory, activations on disk.

Every layer sees the calibration windows twice: once as it is, to gather its linear layers' input
statistics, and once as the visitor left it, to make the inputs of the next layer. So each layer is
calibrated on what the layers before it really compute.

Hidden states live in one mapped file, so memory holds one layer, its statistics and one window's
activations, however many windows there are.

Legend: T tokens, C input channels of a linear layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import nn

from compressor.calibration.hooks import observed
from compressor.core.errors import VerificationError
from compressor.models.adapter import DecoderLayer, ModelAdapter
from compressor.models.checkpoint import CheckpointReader

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
    """

    index: int
    prefix: str
    linears: dict[str, nn.Linear]
    grams: dict[str, Gram]


# Further keyword arguments with which a decoder layer is called.
Call = Mapping[str, object]
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
    model = _empty_model(checkpoint, dtype, trust_remote_code=trust_remote_code)
    adapter = ModelAdapter(model)
    changed: dict[str, Path] = {}
    with CheckpointReader(checkpoint) as reader:
        states, calls = _embed(adapter, reader, windows, scratch, dtype=dtype, device=device)
        for index, layer in enumerate(adapter.layers):
            prefix = f"{adapter.family.layers}.{index}."
            _materialise_(layer.module, reader, prefix, dtype=dtype, device=device)
            grams = _gather(layer, states, calls[index], device=device, on_window=on_window)
            for name, gram in grams.items():
                if not torch.isfinite(gram.total).all():
                    where = prefix + name
                    raise VerificationError("an activation is not finite", where=where, found="NaN or inf")
            linears = layer.linear_layers()
            replaced = visit(LayerVisit(index=index, prefix=prefix, linears=linears, grams=grams))
            grams.clear()
            for name, weight in replaced.items():
                linears[name].weight.data = weight.to(device=device, dtype=dtype)
            changed |= _keep(replaced, prefix, scratch / f"layer-{index}.safetensors")
            for number in range(len(states)):
                states[number] = _call(layer.module, states[number].to(device), calls[index]).cpu()
            layer.module.to("meta")
    (scratch / STATES_FILE).unlink()
    return changed


def _empty_model(checkpoint: Path, dtype: torch.dtype, *, trust_remote_code: bool) -> Any:
    """The model without weights; buffers, which a checkpoint does not hold, are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        checkpoint, local_files_only=True, trust_remote_code=trust_remote_code
    )
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.eval()


class _TupleExpectedError(Exception):
    """The body takes the first element of what a layer returns."""


class _Recorder(nn.Module):
    """Stands in a layer's place: passes hidden states on and keeps what the layer is called with.

    Layers return a tensor, or in older model classes a tuple, of which the body takes the first element.
    A tensor in its place loses its first dimension, which the next recorder sees.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type
        self.hidden_states = torch.empty(0)
        self.call: Call = {}
        self.returns_tuple = False

    def forward(self, hidden_states: torch.Tensor, **call: Any) -> torch.Tensor | tuple[torch.Tensor]:
        if hidden_states.dim() != 3:  # noqa: PLR2004 - [batch, tokens, hidden_size]
            raise _TupleExpectedError
        self.hidden_states, self.call = hidden_states, call
        return (hidden_states,) if self.returns_tuple else hidden_states


@contextmanager
def _recorded(adapter: ModelAdapter) -> Iterator[list[_Recorder]]:
    """The body with recorders for layers and nothing for the last norm, while the context lasts."""
    model, family = adapter.model, adapter.family
    originals, final_norm = model.get_submodule(family.layers), model.get_submodule(family.final_norm)
    recorders = [_Recorder(layer) for layer in originals]
    model.set_submodule(family.layers, nn.ModuleList(recorders))
    model.set_submodule(family.final_norm, nn.Identity())
    try:
        yield recorders
    finally:
        model.set_submodule(family.layers, originals)
        model.set_submodule(family.final_norm, final_norm)


def _embed(
    adapter: ModelAdapter,
    reader: CheckpointReader,
    windows: npt.NDArray[np.uint32],
    scratch: Path,
    *,
    dtype: torch.dtype,
    device: str,
) -> tuple[torch.Tensor, list[Call]]:
    """Every window's first hidden states in a mapped file, and how each layer is called."""
    shape = (len(windows), 1, windows.shape[1], adapter.dims.hidden_size)
    num_states, file = torch.Size(shape).numel(), scratch / STATES_FILE
    # Space is taken at once: a full disk ends a process that writes to a mapped hole with SIGBUS.
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, num_states * dtype.itemsize)
    states = torch.from_file(str(file), shared=True, size=num_states, dtype=dtype).view(shape)
    embedding = adapter.model.get_submodule(adapter.family.embedding)
    _materialise_(embedding, reader, f"{adapter.family.embedding}.", dtype=dtype, device=device)
    with _recorded(adapter) as recorders:
        for buffer_owner in adapter.body.children():
            if not any(parameter.is_meta for parameter in buffer_owner.parameters()):
                buffer_owner.to(device)
        for number, window in enumerate(windows):
            ids = torch.from_numpy(window.astype("int64"))[None].to(device)
            states[number] = _first_states(adapter, recorders, ids).cpu()
    embedding.to("meta")
    # Windows are equally long and stand alone, so one call serves all.
    return states, [recorder.call for recorder in recorders]


def _first_states(adapter: ModelAdapter, recorders: list[_Recorder], ids: torch.Tensor) -> torch.Tensor:
    """What the first layer is given."""
    try:
        adapter.body(ids, use_cache=False)
    except _TupleExpectedError:
        for recorder in recorders:
            recorder.returns_tuple = True
        adapter.body(ids, use_cache=False)
    return recorders[0].hidden_states


def _materialise_(
    module: nn.Module, reader: CheckpointReader, prefix: str, *, dtype: torch.dtype, device: str
) -> None:
    state = {
        name: reader.tensor(prefix + name).to(device=device, dtype=dtype) for name in module.state_dict()
    }
    module.load_state_dict(state, assign=True)
    module.requires_grad_(requires_grad=False).to(device)


def _call(module: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    output = module(hidden, **call)
    result: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _gather(
    layer: DecoderLayer, states: torch.Tensor, call: Call, *, device: str, on_window: Callable[[], None]
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
        for number in range(len(states)):
            _call(layer.module, states[number].to(device), call)
            on_window()
    return grams


def _keep(replaced: dict[str, torch.Tensor], prefix: str, path: Path) -> dict[str, Path]:
    tensors = {f"{prefix}{name}.weight": weight.cpu().contiguous() for name, weight in replaced.items()}
    save_file(tensors, path)
    return dict.fromkeys(tensors, path)
