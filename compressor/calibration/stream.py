"""The hidden states of calibration windows on their way through a model, one decoder layer in memory.

Hidden states live in a mapped file, so memory holds one layer and one window's activations, however many
windows there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compressor.models.adapter import DecoderLayer, ModelAdapter
from compressor.models.checkpoint import CheckpointReader

# Further keyword arguments with which a decoder layer is called.
Call = Mapping[str, object]


class Stream:
    """A checkpoint's decoder layers and what reaches them. Use as a context manager.

    Attributes:
        adapter: The model; only the layer that is in use has weights.
        states: What the next layer is given, `[num_windows, 1, seq_len, hidden_size]`.
        device: Where layers run; a torch device name.
        also: What layers are called with in addition, or in place of what the model calls them with.
    """

    def __init__(
        self,
        checkpoint: Path,
        windows: npt.NDArray[np.uint32],
        states_file: Path,
        *,
        dtype: torch.dtype,
        device: str,
        states_dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Embed every window.

        Args:
            checkpoint: A Hugging Face checkpoint.
            windows: Calibration windows `[num_windows, seq_len]`.
            states_file: Where hidden states are kept until the stream is closed.
            dtype: Of weights and activations in the forward passes.
            device: Torch device name.
            states_dtype: Of the states in the file; by default that of the forward passes.
            trust_remote_code: Whether the checkpoint's own code may run.
        """
        self.adapter = ModelAdapter(_empty_model(checkpoint, dtype, trust_remote_code=trust_remote_code))
        self._dtype, self.device, self._file = dtype, device, states_file
        shape = (len(windows), 1, windows.shape[1], self.adapter.dims.hidden_size)
        self.states = mapped_states(states_file, shape, states_dtype or dtype)
        self._reader = CheckpointReader(checkpoint)
        self.also: dict[str, object] = {}
        self._calls = self._embed(windows)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()
        self._file.unlink()

    def prefix(self, index: int) -> str:
        """Of a layer's tensors' names in the checkpoint, with a dot."""
        return f"{self.adapter.family.layers}.{index}."

    @contextmanager
    def layer(self, index: int) -> Iterator[DecoderLayer]:
        """A layer with its weights, while the context lasts."""
        layer = self.adapter.layers[index]
        self._materialise_(layer.module, self.prefix(index))
        yield layer
        layer.module.to("meta")

    @torch.no_grad()
    def run(self, index: int, states: torch.Tensor) -> torch.Tensor:
        """What the layer in use makes of one window's states, on the device."""
        layer = self.adapter.layers[index].module
        output = layer(self.placed(states), **{**self._calls[index], **self.also})
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def placed(self, states: torch.Tensor) -> torch.Tensor:
        """States as the layers take them."""
        return states.to(device=self.device, dtype=self._dtype)

    def advance(self, index: int) -> None:
        """Replace every window's states by what the layer in use makes of them."""
        for states in self.states:
            states.copy_(self.run(index, states))

    @torch.no_grad()
    def _embed(self, windows: npt.NDArray[np.uint32]) -> list[Call]:
        """Fill the states; returns how each layer is called."""
        adapter = self.adapter
        embedding = adapter.model.get_submodule(adapter.family.embedding)
        self._materialise_(embedding, f"{adapter.family.embedding}.")
        with _recorded(adapter) as recorders:
            for buffer_owner in adapter.body.children():
                if not any(parameter.is_meta for parameter in buffer_owner.parameters()):
                    buffer_owner.to(self.device)
            for number, window in enumerate(windows):
                ids = torch.from_numpy(window.astype("int64"))[None].to(self.device)
                self.states[number] = _first_states(adapter, recorders, ids).cpu()
        embedding.to("meta")
        # Windows are equally long and stand alone, so one call serves all.
        return [recorder.call for recorder in recorders]

    def _materialise_(self, module: nn.Module, prefix: str) -> None:
        state = {
            name: self._reader.tensor(prefix + name).to(device=self.device, dtype=self._dtype)
            for name in module.state_dict()
        }
        module.load_state_dict(state, assign=True)
        module.requires_grad_(requires_grad=False).to(self.device)


def begun(adapter: ModelAdapter, ids: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
    """What a model in memory gives its first layer for token ids `[batch, tokens]`, and how it calls each."""
    with _recorded(adapter) as recorders:
        states = _first_states(adapter, recorders, ids)
    return states, [recorder.call for recorder in recorders]


def mapped_states(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor in a file of reserved space: a full disk ends a process that writes to a hole by SIGBUS."""
    size = torch.Size(shape).numel()
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)


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


def _first_states(adapter: ModelAdapter, recorders: list[_Recorder], ids: torch.Tensor) -> torch.Tensor:
    """What the first layer is given."""
    try:
        adapter.body(ids, use_cache=False)
    except _TupleExpectedError:
        for recorder in recorders:
            recorder.returns_tuple = True
        adapter.body(ids, use_cache=False)
    return recorders[0].hidden_states
