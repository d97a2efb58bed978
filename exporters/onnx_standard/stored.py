"""Reading a standard graph back: its nodes, and its tensors one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from compressor.core.errors import VerificationError
from exporters.onnx.builder import GRAPH_FILE
from exporters.onnx_standard.graph import IR_TYPES

DATA_FILE = f"{GRAPH_FILE}.data"
_TORCH_TYPES = {kind: dtype for dtype, kind in IR_TYPES.items()}


class StoredModel:
    """A graph in a directory, without its data; tensors are read when they are asked for."""

    def __init__(self, directory: Path) -> None:
        """Read the graph.

        Raises:
            VerificationError: when it is missing or corrupt, or names data outside its directory.
        """
        self._file = directory / GRAPH_FILE
        if not self._file.is_file():
            raise VerificationError("the graph is missing", where=str(self._file))
        try:
            self.model: ir.Model = ir.load(self._file)
        except Exception as error:
            raise VerificationError("the graph is corrupt", where=str(self._file), found=error) from error
        for value in self.model.graph.initializers.values():
            location = getattr(value.const_value, "location", None)
            if location is not None and str(location) != DATA_FILE:
                raise VerificationError(
                    "the graph's weights are elsewhere",
                    where=f"{self._file}: {value.name}",
                    expected=DATA_FILE,
                    found=location,
                )

    def names(self) -> list[str]:
        """Names of its initialisers."""
        return list(self.model.graph.initializers)

    def tensor(self, name: str) -> torch.Tensor:
        """An initialiser's values; VerificationError where it is missing, or its data is."""
        value = self.model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise VerificationError("the graph lacks a tensor", where=name)
        return self.values_of(name, value.const_value)

    @staticmethod
    def values_of(name: str, stored: Any) -> torch.Tensor:
        """The values of a tensor of onnx_ir."""
        if stored.dtype not in _TORCH_TYPES:
            raise VerificationError("a tensor has an unknown dtype", where=name, found=stored.dtype)
        dtype, shape = _TORCH_TYPES[stored.dtype], list(stored.shape)
        try:
            data = stored.tobytes()
        except (OSError, ValueError) as error:
            raise _truncated(name, error) from error
        if len(data) != stored.nbytes:
            raise _truncated(name, f"{len(data)} of {stored.nbytes} bytes")
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _truncated(name: str, found: object) -> VerificationError:
    return VerificationError("the graph's weights are missing or truncated", where=name, found=found)
