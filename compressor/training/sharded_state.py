"""Parameters and optimizer of a training in a checkpoint that every process writes its own part of.

`torch.distributed.checkpoint` keeps each sharded tensor as the pieces that the processes hold, and reads
any piece of it back, so that another number of processes, or another kind of data parallelism, can
continue. Nothing is gathered.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from compressor.core.errors import VerificationError

_OPTIMIZER = "optimizer"
# All that the record of a checkpoint is made of; the library unpickles it, which could name any code.
_RECORD = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
}


class _RecordUnpickler(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a checkpoint's record names.

        Raises:
            UnpicklingError: for anything else.
        """
        is_kind = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_kind or (module, name) == ("torch", "Size") or name in _RECORD.get(module, ()):
            return super().find_class(module, name)
        raise UnpicklingError(f"{module}.{name} does not belong into the record of a checkpoint")


class _Reader(FileSystemReader):
    def read_metadata(self, *arguments: Any, **named: Any) -> Metadata:
        """The checkpoint's record, once it is known to be nothing else."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            _RecordUnpickler(file).load()
        return super().read_metadata(*arguments, **named)


def save_state(directory: Path, named: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Write tensors and what an optimizer keeps of them; every process must take part.

    Args:
        directory: The checkpoint, made if it is not there.
        named: All trained parameters and other tensors, sharded or whole.
        optimizer: Over some of them.
    """
    names = {tensor: name for name, tensor in named.items()}
    state = {name: tensor.detach() for name, tensor in named.items()}
    for parameter, kept in optimizer.state.items():
        state |= {_key(names[parameter], entry): value for entry, value in kept.items()}
    with_own_errors(lambda: save(state, checkpoint_id=directory))


def load_state_(directory: Path, named: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Restore in place what `save_state` wrote, whatever the number of processes was.

    Raises:
        VerificationError: when the checkpoint does not fit.
    """
    state = {name: tensor.detach() for name, tensor in named.items()}
    try:
        optimizer_state = _empty_optimizer_state(directory, named)
        for name, kept in optimizer_state.items():
            state |= {_key(name, entry): value for entry, value in kept.items()}
        with_own_errors(lambda: load(state, storage_reader=_Reader(directory)))
    except (RuntimeError, ValueError, KeyError, AttributeError, EOFError, UnpicklingError) as error:
        # Its sha256 is right: the settings, or the version of torch, are not those that wrote it.
        raise VerificationError(
            "a training checkpoint does not fit this training",
            where=str(directory),
            found=error,
            hint="start the training again: --overwrite, or --restart-from its stage in a run",
        ) from error
    for name, kept in optimizer_state.items():
        optimizer.state[named[name]] = kept


def with_own_errors(work: Callable[[], object]) -> None:
    """Run `work`; what failed in any process is raised as itself, not as the library's BaseException."""
    try:
        with warnings.catch_warnings():
            # A single process saves and loads by itself, as the library says every time.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            work()
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def _empty_optimizer_state(
    directory: Path, named: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """What the checkpoint holds of the optimizer: moments sharded as their parameters are, and counts."""
    saved = _Reader(directory).read_metadata().state_dict_metadata
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, entry in saved.items():
        root, _, rest = key.partition("/")
        if root != _OPTIMIZER or not isinstance(entry, TensorStorageMetadata):
            continue
        name, _, which = rest.rpartition("/")
        dtype, parameter = entry.properties.dtype, named[name]
        of_parameter = entry.size == parameter.shape
        empty = (
            torch.zeros_like(parameter, dtype=dtype) if of_parameter else torch.zeros(entry.size, dtype=dtype)
        )
        found.setdefault(name, {})[which] = empty
    return found


def _key(name: str, entry: str) -> str:
    return f"{_OPTIMIZER}/{name}/{entry}"
