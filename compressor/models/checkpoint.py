"""Hugging Face checkpoints on disk: reading tensors lazily, writing them as a stream.

The safetensors layout is eight bytes of header length, a JSON header and the raw tensors. Writing
it here, tensor by tensor, keeps two chunks in memory, whatever the checkpoint's size.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import read_json, read_json_mapping

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
_CHUNK_BYTES = 1 << 25
_AGAIN = "download the checkpoint again, or repeat the command that wrote it"

# What safetensors calls a dtype.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}
# What old checkpoints carry and no current model class reads -> why leaving it out changes nothing.
HARMLESS = {
    r"(^|\.)rotary_emb\.inv_freq$": "rope frequencies: the class computes them from the config",
    r"(^|\.)rotary_emb\.(cos|sin)_cached$": "rope tables: computed from the same frequencies",
    r"(^|\.)self_attn\.masked_bias$": "the causal mask's constant",
}
_HARMLESS = re.compile("|".join(HARMLESS))


def read_config(directory: Path, *, kind: str = "Hugging Face") -> dict[str, Any]:
    """Read `config.json`: a UsageError about this kind of checkpoint where it is not there."""
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise UsageError(
            f"this directory holds no {kind} checkpoint",
            where=str(directory),
            expected=CONFIG_FILE,
            hint=f"name the directory that holds {CONFIG_FILE}",
        )
    return read_json_mapping(file, what=CONFIG_FILE)


class CheckpointReader(ExitStack):
    """The tensors of a safetensors checkpoint, one file or sharded, mapped lazily; names in file order."""

    def __init__(self, directory: Path) -> None:
        """Open every file of the checkpoint; the index says which of them holds a tensor.

        Raises:
            UsageError: when there are no safetensors files.
            VerificationError: when one is truncated or corrupt, an index names what is not there, or a
                file holds a tensor that the index puts elsewhere: libraries disagree on which one counts.
        """
        super().__init__()
        self._files: dict[str, Any] = {}
        self.paths = weight_files(directory)
        index = directory / INDEX_FILE
        mapped = weight_map(index) if index.is_file() else None
        try:
            for path in self.paths:
                self._open(path, mapped)
            if mapped is not None:
                _refuse_absent(mapped, self._files, index)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, mapped: dict[str, str] | None) -> None:
        try:
            file = self.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise VerificationError(
                "a weight file is truncated or corrupt", where=str(path), found=error, hint=_AGAIN
            ) from error
        names: list[str] = file.keys()
        for name in names:
            if mapped is not None:
                _refuse_elsewhere(name, path, mapped)
            self._files[name] = file

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, its pages read when touched; a VerificationError where there is none."""
        if name not in self._files:
            raise VerificationError("the checkpoint lacks a tensor", where=name)
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Safetensors' name of a tensor's dtype, without reading it."""
        return str(self._files[name].get_slice(name).get_dtype())


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        UsageError: when there are none (pickled weights are not read).
        VerificationError: when the index is corrupt or names a missing file, or weights are there twice.
    """
    index, single = directory / INDEX_FILE, directory / WEIGHTS_FILE
    if index.is_file():
        names = sorted(set(weight_map(index).values()))
        files = [directory / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise VerificationError(
                "the checkpoint lacks a file", where=str(index), found=", ".join(missing), hint=_AGAIN
            )
        if single.is_file() and WEIGHTS_FILE not in names:
            raise VerificationError(
                "the checkpoint holds its weights twice: transformers reads the one, others the other",
                where=str(directory),
                expected=f"{WEIGHTS_FILE} or {INDEX_FILE}",
                found="both",
                hint="remove the one that is not meant",
            )
        return files
    if single.is_file():
        return [single]
    raise _no_weights(directory)


def _no_weights(directory: Path) -> UsageError:
    """Why there is nothing to read: an index or a name is missing, or the weights are pickled."""
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt*"))
    hint = f"name a directory that holds {WEIGHTS_FILE}, or a Hugging Face id"
    if others:
        hint = f"download {INDEX_FILE} too"
        if len(others) == 1:
            hint = f"rename {others[0]} to {WEIGHTS_FILE} if it holds all the weights"
    elif pickled:
        hint = "convert pickled weights with save_pretrained(safe_serialization=True) first"
    return UsageError(
        f"the index of the weight files is missing: {INDEX_FILE}"
        if others
        else "this directory holds no safetensors weights",
        where=str(directory),
        expected=f"{WEIGHTS_FILE} or {INDEX_FILE}",
        found=", ".join(others[:3]) or None,
        hint=hint,
    )


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds a tensor, by the index; one that is corrupt, or names a file elsewhere, is refused."""
    try:
        stated = read_json(index, what="the weight index")["weight_map"]
        mapped = {str(name): str(file) for name, file in stated.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationError("the weight index is corrupt", where=str(index), found=error) from error
    outside = [name for name in mapped.values() if Path(name).name != name]
    if outside:
        raise VerificationError("the index names a file elsewhere", where=str(index), found=outside[0])
    return mapped


def is_harmless(name: str) -> bool:
    """Whether a tensor is on the list of those that may be left out."""
    return _HARMLESS.search(name) is not None


def _refuse_absent(mapped: dict[str, str], files: Collection[str], index: Path) -> None:
    for name, file in mapped.items():
        if name not in files:
            raise VerificationError(
                "the index names a tensor that its file does not hold",
                where=str(index),
                expected=f"{name} in {file}",
                hint=_AGAIN,
            )


def _refuse_elsewhere(name: str, path: Path, mapped: dict[str, str]) -> None:
    if mapped.get(name) != path.name and not (name not in mapped and is_harmless(name)):
        raise VerificationError(
            "a weight file holds a tensor that the index does not put there",
            where=f"{path}: {name}",
            expected=f"{name} in {mapped[name]} alone" if name in mapped else f"{name} in {INDEX_FILE}",
            hint="which of two tensors a library takes is by chance; download the checkpoint again",
        )


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor to be written: what it will be, and a function that yields it in row blocks.

    `blocks` yields contiguous tensors whose concatenation along dimension 0 has `shape` and `dtype`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[torch.Tensor]]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def whole(name: str, tensor: torch.Tensor) -> TensorSpec:
    """The spec of a tensor that is in memory already."""
    return TensorSpec(
        name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, blocks=lambda: (tensor.contiguous(),)
    )


def write_checkpoint(
    directory: Path,
    specs: list[TensorSpec],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write tensors as `model.safetensors`, or as shards with an index; see `write_safetensors`."""
    shards = _split(specs, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors(directory / WEIGHTS_FILE, shards[0], on_tensor=on_tensor)
        return
    mapped: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / name, shard, on_tensor=on_tensor)
        mapped |= {spec.name: name for spec in shard}
    total = sum(spec.num_bytes for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": mapped}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_safetensors(
    path: Path, specs: list[TensorSpec], *, on_tensor: Callable[[], None] = lambda: None
) -> None:
    """Write one safetensors file, block by block; blocks that do not fit the spec are a VerificationError."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.num_bytes],
        }
        offset += spec.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    # Each block is written while the next one is made.
    with path.open("wb") as file, ThreadPoolExecutor(1) as writer:
        writing = writer.submit(file.write, struct.pack("<Q", len(encoded)) + encoded)
        for spec in specs:
            num_bytes = 0
            for block in spec.blocks():
                if block.dtype != spec.dtype:
                    raise VerificationError(
                        "a block has another dtype", where=spec.name, expected=spec.dtype, found=block.dtype
                    )
                data = block.contiguous().view(-1).view(torch.uint8).numpy().data
                num_bytes += len(data)
                writing.result()
                writing = writer.submit(file.write, data)
            if num_bytes != spec.num_bytes:
                raise VerificationError(
                    "a tensor's blocks do not add up",
                    where=spec.name,
                    expected=spec.num_bytes,
                    found=num_bytes,
                )
            on_tensor()
        writing.result()


def row_blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of a tensor's rows, each about 32 MiB."""
    if tensor.dim() == 0:
        yield tensor
        return
    row_bytes = max(1, tensor[:1].numel() * tensor.element_size())
    yield from tensor.split(max(1, _CHUNK_BYTES // row_bytes))


def hash_and_check(directory: Path, *, on_warning: Callable[[str], None] = lambda _: None) -> str:
    """sha256 over config, tokenizer, weights and what is computed with them beside the 16-bit ones.

    Warns of matrices that are zero everywhere.

    Raises:
        VerificationError: naming the first tensor with NaN or infinity, or the unreadable file.
    """
    digest = hashlib.sha256((directory / CONFIG_FILE).read_bytes())
    # Masks, what an adapter adds, and FP8 scales and weights decide what becomes of equal 16-bit weights.
    for kind in ("tokenizer*", "masks.*", "adapter/*", "amax.*", "huggingface-fp8/*"):
        for beside in sorted(directory.glob(kind)):
            if beside.is_file():
                _add_file(digest, beside)
    with CheckpointReader(directory) as reader:
        for name in reader:
            tensor = reader.tensor(name)
            check_finite(name, tensor)
            if tensor.dim() > 1 and not any(bool(block.any()) for block in row_blocks(tensor)):
                on_warning(f"{directory}: all weights of {name} are zero")
        for path in reader.paths:
            _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    """Add a file's content to a `hashlib` digest, a piece of it in memory."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse, by a VerificationError, a tensor that holds NaN or infinity."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float8_e4m3fn:
        return
    for block in row_blocks(tensor):
        if not torch.isfinite(block).all():
            raise VerificationError(
                "weights are not finite", where=name, expected="finite", found="NaN or inf"
            )


def _split(specs: list[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards
