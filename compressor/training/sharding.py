"""Training in several processes: the student in full copies (DDP), or sharded row by row (FSDP2).

Sharding is torch's `fully_shard`, applied here and not through accelerate's plugin, which on a CPU
silently trains full copies. Each decoder layer is one unit, the module that computes the loss is the
root: its forward gathers what is outside the layers (embedding, last norm, LM head), and only there may
they be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from compressor.core.processes import is_main, rank, world_size
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import TensorSpec, row_blocks


def shard_(root: nn.Module, model: Any, mesh: DeviceMesh, *, bf16: bool) -> None:
    """Shard a model's layers, then the module around it, in place.

    Args:
        root: Its forward is the only one that is called from outside.
        model: A causal language model inside `root`.
        mesh: The processes to shard over.
        bf16: Gather weights in bfloat16 (gradients are reduced in float32).
    """
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bf16
        else MixedPrecisionPolicy()
    )
    for layer in ModelAdapter(model).layers:
        fully_shard(layer.module, mesh=mesh, mp_policy=policy)
    # The root's weights stay gathered between forward and backward: the loss reads the LM head.
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU, gathered from all processes if it is sharded."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.cpu().contiguous()


def reshard_(module: nn.Module) -> None:
    """Let go of what a sharded root gathered for a forward pass that no backward pass follows.

    Until then its parameters are the gathered ones, rounded to the dtype of the computation.
    """
    if isinstance(module, FSDPModule):
        module.reshard()


def stream_rows(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A tensor's rows in blocks on the main process's CPU, in order; no process holds more than a block.

    Args:
        tensor: Whole, or sharded by rows over all processes, which must then all exhaust this.
        dtype: What the blocks are converted to.

    Yields:
        The blocks, in the main process alone if the tensor is sharded.
    """
    if not isinstance(tensor, DTensor):
        yield from (block.to(device="cpu", dtype=dtype) for block in row_blocks(tensor.detach()))
        return
    own, num_rows = tensor.to_local().detach(), tensor.shape[0]
    most = -(-num_rows // world_size())  # the rows of every process but the last ones
    for owner in range(min(world_size(), -(-num_rows // most))):
        start, end = owner * most, min(num_rows, (owner + 1) * most)
        for like in row_blocks(torch.empty((end - start, *tensor.shape[1:]), dtype=dtype, device="meta")):
            first = start - owner * most
            start += like.shape[0]
            block = (
                own[first : first + like.shape[0]]
                if owner == rank()
                else torch.empty_like(like, device="cpu")
            )
            block = block.to(device="cpu", dtype=dtype).contiguous()
            if owner:
                _to_main(block, owner)
            if is_main():
                yield block


def stored_tensors(model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> list[TensorSpec]:
    """Parameters of a model as a checkpoint's tensors, see `stream_rows`."""
    state = dict(model.named_parameters())
    return [
        TensorSpec(
            name=name,
            shape=tuple(state[name].shape),
            dtype=dtype,
            blocks=partial(stream_rows, state[name], dtype),
        )
        for name in names
    ]


def _to_main(block: torch.Tensor, owner: int) -> None:
    """Fill the main process's block with the owner's; by bytes, which every backend can send."""
    block_bytes = block.view(-1).view(torch.uint8)
    if is_main():
        dist.recv(block_bytes, src=owner)
    elif rank() == owner:
        dist.send(block_bytes, dst=0)
