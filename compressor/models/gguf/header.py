"""The header of a GGUF file, read within bounds: fields, and the place, type and shape of every tensor.

A header says itself how long its lists are. Nothing here is allocated or looped over because a number in
the file says so: every count is compared with a limit and with what the file can hold. The layout is that
of versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md); tests compare it with the `gguf` package.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from compressor.core.errors import UnsupportedError, UsageError, VerificationError

# What to do about a file that says more than can be read here.
ORIGINAL_CHECKPOINT = "use the safetensors checkpoint that the file was made from"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_FIELDS = 1 << 14
_MAX_TENSORS = 1 << 17
_MAX_ITEMS = 1 << 22
_MAX_STRING_BYTES = 1 << 26
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16
_DEFAULT_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        shape: Rows first, as in torch (the file has it the other way round).
        kind: Name of its type, such as `F16` or `Q4_1`.
        offset: First byte, from the beginning of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """Everything but the weights; tensors in the file's order."""

    path: Path
    fields: dict[str, object]
    tensors: dict[str, GgufTensor]

    def field(self, key: str) -> object:
        """A field that must be there, else a VerificationError."""
        if key not in self.fields:
            raise VerificationError(
                "the GGUF file lacks a field",
                where=str(self.path),
                expected=key,
                hint="check that it is a language model; otherwise convert it again",
            )
        return self.fields[key]

    def listed(self, key: str) -> list[object]:
        """A field that is a list; an empty one where there is no such list."""
        values = self.fields.get(key)
        return values if isinstance(values, list) else []

    def raw(self, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A tensor's stored bytes, mapped: `[num_rows, bytes_per_row]`."""
        num_rows = prod(tensor.shape[:-1])
        mapped = np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.num_bytes,))
        return mapped.reshape(num_rows, -1)


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of one GGUF file.

    Raises:
        UsageError: for a directory, FIFO or device.
        VerificationError: for a truncated or corrupt file.
        UnsupportedError: for one part of a split model, or a version or tensor type that is not read.
    """
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise UsageError(
            "this GGUF file cannot be read",
            where=str(path),
            found=f"it is {kind}",
            hint="give the path of one .gguf file",
        )
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data).header()
    except (struct.error, ValueError, OverflowError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, reason: object) -> VerificationError:
    return VerificationError(
        "the GGUF file is truncated or corrupt",
        where=str(path),
        found=reason,
        hint="download or convert it again",
    )


class _Cursor:
    """Reads values one after the other; `struct.error` marks the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def header(self) -> GgufHeader:
        if self._bytes(4) != _MAGIC:
            raise _corrupt(self._path, "the file does not begin with GGUF")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise UnsupportedError(
                "this version of the GGUF format is not read",
                where=str(self._path),
                expected="2 or 3",
                found=version,
                hint="convert the model again with a current llama.cpp",
            )
        num_tensors = self._count("tensors", _MAX_TENSORS)
        fields: dict[str, object] = {}
        for _ in range(self._count("fields", _MAX_FIELDS)):
            key = self._string()
            if key in fields:
                raise _corrupt(self._path, f"the field {key} is there twice")
            fields[key] = self._value(self._scalar("I"))
        _refuse_part(self._path, fields)
        records = [self._record() for _ in range(num_tensors)]
        return GgufHeader(path=self._path, fields=fields, tensors=self._place(records, fields))

    def _bytes(self, length: int) -> bytes:
        if self._at + length > len(self._data):
            raise _corrupt(self._path, f"it ends after {len(self._data):,} bytes, inside its header")
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def _count(self, what: str, limit: int) -> int:
        count = int(self._scalar("Q"))
        if count > limit:
            raise _corrupt(self._path, f"its header declares {count:,} {what}; at most {limit:,} are read")
        return count

    def _string(self) -> str:
        return self._bytes(self._count("bytes of one string", _MAX_STRING_BYTES)).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise _corrupt(self._path, f"a field has the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind = self._scalar("I")
        count = self._count("items of one list", _MAX_ITEMS)
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise _corrupt(self._path, f"a list has items of the unknown type {kind}")
        code = f"<{count}{_SCALARS[kind]}"
        return list(struct.unpack(code, self._bytes(struct.calcsize(code))))

    def _record(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of one tensor, as they stand."""
        name, num_dimensions = self._string(), self._scalar("I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise _corrupt(self._path, f"the tensor {name} has {num_dimensions} dimensions")
        shape = struct.unpack(f"<{num_dimensions}Q", self._bytes(8 * num_dimensions))
        return name, tuple(reversed(shape)), self._scalar("I"), self._scalar("Q")

    def _place(
        self, records: list[tuple[str, tuple[int, ...], int, int]], fields: dict[str, object]
    ) -> dict[str, GgufTensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT:
            raise _corrupt(self._path, f"general.alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, number, offset in records:
            if name in tensors:
                raise _corrupt(self._path, f"the tensor {name} is there twice")
            if number not in set(GGMLQuantizationType):
                raise UnsupportedError(
                    "a tensor of the GGUF file has an unknown type",
                    where=f"{self._path}: {name}",
                    found=f"type {number}",
                    hint="give the same model in another quantisation, such as Q8_0 or F16",
                )
            kind = GGMLQuantizationType(number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            num_bytes = prod(shape) // block * block_bytes
            if not num_bytes or shape[-1] % block:
                raise _corrupt(self._path, f"the tensor {name} has shape {list(shape)}")
            if start + offset + num_bytes > len(self._data):
                raise _corrupt(self._path, f"it ends inside the tensor {name}")
            tensors[name] = GgufTensor(
                name=name, shape=shape, kind=kind.name, offset=start + offset, num_bytes=num_bytes
            )
        return tensors


def _refuse_part(path: Path, fields: dict[str, object]) -> None:
    """Refuse one of several files that are one model together."""
    count = fields.get("split.count", 1)
    if count not in (0, 1):
        part = fields.get("split.no", 0)
        raise UnsupportedError(
            "this GGUF file is one part of a split model",
            where=str(path),
            expected="one file",
            found=f"part {part + 1 if isinstance(part, int) else part} of {count}",
            hint="merge the parts: llama-gguf-split --merge FIRST_PART MODEL.gguf",
        )
