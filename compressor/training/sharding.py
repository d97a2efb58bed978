"""Training in several processes: the student in full copies (DDP), or sharded row by row (FSDP2).

Sharding is torch's `fully_shard`, applied here and not through accelerate's plugin, which on a CPU
silently trains full copies. Each decoder layer is one unit, the module that computes the loss is the
root: its forward gathers what is outside the layers (embedding, last norm, LM head), and only there may
they be read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from compressor.core.processes import world_size
from compressor.models.adapter import ModelAdapter


def process_mesh(device: str) -> DeviceMesh:
    """All processes in one row."""
    return init_device_mesh(device, (world_size(),))


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


def full_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Whole parameters on the CPU under their plain names; of tied ones only the first name.

    Every process must take part; each gathers one parameter at a time.
    """
    return {name: whole(parameter.detach()) for name, parameter in module.named_parameters()}


@torch.no_grad()
def load_full_state_(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Set parameters from whole tensors, sharded as each parameter is.

    Raises:
        KeyError: for a parameter that `state` does not hold.
    """
    for name, parameter in module.named_parameters():
        value = state[name]
        if isinstance(parameter, DTensor):
            value = distribute_tensor(
                value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        parameter.copy_(value)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU, gathered from all processes if it is sharded."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.cpu().contiguous()


def local_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """An optimizer's state with this process's rows of every sharded tensor."""
    state = optimizer.state_dict()
    local = {
        number: {name: _local(value) for name, value in of.items()} for number, of in state["state"].items()
    }
    return {**state, "state": local}


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def load_local_optimizer_state_(optimizer: Any, state: dict[str, Any]) -> None:
    """Take up what `local_optimizer_state` gave in the same process of an equal run."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole = {
        number: {name: _like(value, parameters[number]) for name, value in of.items()}
        for number, of in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": whole})


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """A state tensor sharded as its parameter is; scalars such as step counts are no shards."""
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
