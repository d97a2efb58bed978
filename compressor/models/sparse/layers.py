"""Linear layers with a mask and a low-rank branch, in place of a loaded model's own.

The parameters are the model's, under their own names, so checkpoints read like the dense model's. Masks
are buffers that no checkpoint holds: they move with the model and are saved packed, beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from compressor.core.errors import UnsupportedError
from compressor.models.sparse.low_rank import AdapterBranch


class SparseLinear(nn.Module):
    """y = (m ⊙ W) x + b + S (X x); mask and branch each optional."""

    keep_mask: torch.Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        *,
        keep_mask: torch.Tensor | None = None,
        straight_through: bool = False,
        branch: AdapterBranch | None = None,
    ) -> None:
        """Take over a linear layer's parameters; in the bool mask True = kept.

        With `straight_through`, masked weights get the gradient of the masked product, as if they were kept;
        else none.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.straight_through = straight_through
        device = linear.weight.device
        self.register_buffer(
            "keep_mask", None if keep_mask is None else keep_mask.to(device), persistent=False
        )
        self.slorb_down = self.slorb_up = None
        if branch is not None:
            dtype = linear.weight.dtype
            self.slorb_down = nn.Parameter(branch.down.to(device=device, dtype=dtype, copy=True))
            self.slorb_up = nn.Parameter(branch.up.to(device=device, dtype=dtype, copy=True))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply `[..., in]` into `[..., out]`."""
        weight = self.weight
        if self.keep_mask is not None:
            weight = cast(
                torch.Tensor,
                _Masked.apply(weight, self.keep_mask, self.straight_through),  # type: ignore[no-untyped-call]
            )
        output = functional.linear(inputs, weight, self.bias)
        if self.slorb_down is None or self.slorb_up is None:
            return output
        return output + functional.linear(functional.linear(inputs, self.slorb_down), self.slorb_up)

    def branch(self) -> AdapterBranch | None:
        """The branch as it is now."""
        if self.slorb_down is None or self.slorb_up is None:
            return None
        return AdapterBranch(down=self.slorb_down.detach().float(), up=self.slorb_up.detach().float())


class _Masked(torch.autograd.Function):
    """m ⊙ W; its gradient passes straight through, or is masked as well."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        keep_mask: torch.Tensor,
        straight_through: bool,  # noqa: FBT001
    ) -> torch.Tensor:
        ctx.keep_mask = None if straight_through else keep_mask
        return torch.where(keep_mask, weight, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grad_outputs[0]
        return (grad if ctx.keep_mask is None else torch.where(ctx.keep_mask, grad, 0)), None, None


def install_sparse_layers_(
    model: nn.Module,
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    straight_through: bool = False,
    branches: Mapping[str, AdapterBranch] | None = None,
) -> dict[str, SparseLinear]:
    """Replace linear layers by sparse ones; returns them by the full name of their weight.

    So are masks given, and branches by that of the layer. See `SparseLinear` and `require_rowwise`.
    """
    masks, branches = masks or {}, branches or {}
    installed = {}
    for name in sorted({*masks, *(f"{module}.weight" for module in branches)}):
        module = name.removesuffix(".weight")
        linear = cast(nn.Linear, model.get_submodule(module))
        require_rowwise(name, linear.weight)
        installed[name] = SparseLinear(
            linear,
            keep_mask=masks.get(name),
            straight_through=straight_through,
            branch=branches.get(module),
        )
        model.set_submodule(module, installed[name])
    return installed


def require_rowwise(name: str, weight: torch.Tensor) -> None:
    """Refuse, as unsupported, a weight whose groups of input channels are not whole on one device.

    Sharding by rows (FSDP2) keeps them; sharding by columns, and what flattens parameters, does not.
    """
    is_split = isinstance(weight, DTensor) and any(
        placement.is_shard() and not placement.is_shard(0) for placement in weight.placements
    )
    if weight.dim() != 2 or is_split:  # noqa: PLR2004 - a matrix
        raise UnsupportedError(
            "this sharding splits the groups of a sparse weight",
            where=name,
            expected="whole rows, as FSDP2 shards them",
            found="columns are split" if is_split else f"a flattened parameter {list(weight.shape)}",
            hint="use FSDP2 (fully_shard) without tensor parallelism over input channels",
        )
