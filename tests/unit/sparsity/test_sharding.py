"""Row-wise sharding keeps groups whole; sharding by columns is refused. One process, real DTensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from compressor.core.errors import UnsupportedError
from compressor.models.sparse.layers import install_sparse_layers_, require_rowwise
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import Pattern
from compressor.sparsity.adaptive import MovingMasks
from tests.short_training import make_config


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_columns_may_not_be_split(mesh: DeviceMesh) -> None:
    weight = torch.randn(8, 8)
    require_rowwise("w", distribute_tensor(weight, mesh, [Shard(0)]))
    with pytest.raises(UnsupportedError, match="columns are split"):
        require_rowwise("w", distribute_tensor(weight, mesh, [Shard(1)]))


def steps(model: nn.Module, masks: MovingMasks, inputs: torch.Tensor) -> None:
    optimizer = masks.make_optimizer(model, make_config(learning_rate=1e-2))
    for step in range(1, 5):
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.after_step(step)


def make_masks(model: nn.Module) -> MovingMasks:
    weight = model.get_parameter("0.weight")
    layers = install_sparse_layers_(model, masks={"0.weight": keep_mask(weight.abs())}, straight_through=True)
    return MovingMasks(layers, pattern=Pattern(), interval=2, mask_decay=0.1, ramp_steps=2)


def test_sharded_steps_equal_plain_ones(mesh: DeviceMesh) -> None:
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(8, 6, bias=False))
    sharded = nn.Sequential(nn.Linear(8, 6, bias=False))
    sharded.load_state_dict(plain.state_dict())
    ours, theirs = make_masks(plain), make_masks(sharded)
    fully_shard(sharded, mesh=mesh)
    inputs = torch.randn(5, 8)
    steps(plain, ours, inputs)
    steps(sharded, theirs, inputs)
    weight = sharded.get_parameter("0.weight")
    assert isinstance(weight, DTensor)
    torch.testing.assert_close(weight.full_tensor(), plain.get_parameter("0.weight"))
    assert torch.equal(theirs.masks()["0.weight"], ours.masks()["0.weight"])
