"""The processes of one run: one, or as many as `torchrun` started.

Work that every process shares (training) runs in all of them; everything else runs in the main one while
the others wait for its outcome.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from compressor.core.errors import UsageError

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
# A sequence or an array.
Shared = TypeVar("Shared", bound="Sliceable")


class Sliceable(Protocol):
    """What gives a part of its own kind for a slice."""

    def __getitem__(self, key: slice, /) -> Any:
        """That part."""


# Whether the main process works while the others wait.
_alone: contextvars.ContextVar[bool] = contextvars.ContextVar("alone", default=False)

# Others wait this long for the main process: whole exports and benchmarks.
_PATIENCE = timedelta(days=7)


def world_size() -> int:
    """How many processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Work beside the other processes of the run and leave them when it is done; nothing for a single one.

    On `cuda` (nccl) each process has the GPU of its local rank; `cpu` means gloo. Processes that cannot find
    each other are a UsageError.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            "the processes of this run cannot find each other",
            where="WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT",
            found=error,
            hint="start them with torchrun, or unset WORLD_SIZE",
        ) from error
    yield
    # Not after an error: the others may hang in a collective then. A thread of gloo that still has to free a
    # finished collective's tensor aborts the process when the interpreter ends. Waiting lets it do so, and
    # a group that nothing refers to (modules in reference cycles do) ends its threads.
    barrier()
    gc.collect()
    _waiting_group.cache_clear()
    dist.destroy_process_group()


def on_main(work: Callable[[], Value]) -> Value:
    """Run `work` in the main process alone; its value, or its error, is every process's.

    Inside such work the main process is alone already: nobody waits for a second outcome.
    """
    if world_size() == 1 or _alone.get():
        return work()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if is_main():
        token = _alone.set(True)
        try:
            outcome[0] = work()
        except Exception as error:  # noqa: BLE001 - raised again, here and in every other process
            outcome[1] = error
        finally:
            _alone.reset(token)
    dist.broadcast_object_list(outcome, src=0, group=_waiting_group())
    if outcome[1] is not None:
        raise outcome[1]
    value: Value = outcome[0]
    return value


def barrier() -> None:
    """Wait until every process is here."""
    on_main(lambda: None)


def own_share(items: Shared) -> Shared:
    """Of what every process has whole, each a part: every so many-th item; all where one works alone."""
    if world_size() == 1 or _alone.get():
        return items
    part: Shared = items[rank() :: world_size()]
    return part


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of every process's tensor; the tensor itself for a single process, or one that works alone."""
    if world_size() == 1 or _alone.get():
        return values
    import torch.distributed as dist

    total = values.clone()
    dist.all_reduce(total)
    return total


@functools.lru_cache(maxsize=1)
def _waiting_group() -> Any:
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_PATIENCE)
