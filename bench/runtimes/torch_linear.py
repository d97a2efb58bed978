"""Linear layers that a GPU may run faster: FP8 matrix products and 2:4 sparse ones.

For speed only: weights are rounded or zeroed without calibration, so the text of such a model says nothing
about quality; the stages `sparsify` and `quantize` make models for use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.design.comparisons import split_precision
from compressor.choices.runtimes import RUNTIMES
from compressor.core.errors import UnsupportedError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
SPARSITY = "2:4"
_E4M3 = torch.float8_e4m3fn
_E4M3_MAX = 448.0
_FP8_CAPABILITY, _SPARSE_CAPABILITY = (8, 9), (8, 0)
_MULTIPLE = 16  # of both dimensions, for FP8 and for 2:4 kernels


class Fp8Linear(nn.Module):
    """`y = x W^T` with both operands in E4M3, one scale per tensor, accumulated in fp32.

    The activation's scale is fixed from the first input, as a calibrated engine's is.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    input_scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = (weight.abs().amax().float() / _E4M3_MAX).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", (weight.float() / scale).to(_E4M3))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", torch.zeros((), dtype=torch.float32, device=weight.device))
        self.bias, self._is_calibrated = linear.bias, False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Multiply `[..., in_features]`; the result has the input's dtype."""
        flat = states.reshape(-1, states.shape[-1])
        if not self._is_calibrated:
            self.input_scale.copy_((flat.abs().amax().float() / _E4M3_MAX).clamp_min(1e-12))
            self._is_calibrated = True
        quantised = (flat.float() / self.input_scale).clamp(-_E4M3_MAX, _E4M3_MAX).to(_E4M3)
        product = torch._scaled_mm(  # noqa: SLF001 - torch has no public function for these kernels
            quantised,
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=states.dtype,
        )
        return product.reshape(*states.shape[:-1], -1)


def sparsify_2_of_4(weight: torch.Tensor) -> torch.Tensor:
    """A copy of `[out, in]` with the two smallest of every four neighbours in a row set to zero."""
    groups = weight.reshape(weight.shape[0], -1, 4)
    smallest = groups.abs().topk(2, dim=-1, largest=False).indices
    return groups.scatter(-1, smallest, 0.0).reshape(weight.shape)


def require_support(precision: str, device: str) -> None:
    """Refuse (UnsupportedError) what the device has no kernels for."""
    dense, sparsity = split_precision(precision)
    if dense not in DTYPES or sparsity not in ("", SPARSITY):
        raise UnsupportedError(
            f"torch does not know the precision {precision!r}: it is unknown",
            where="--precision",
            expected=", ".join(RUNTIMES["torch"].precisions),
            hint="choose one of the expected precisions",
        )
    if dense == "fp8" and sparsity:
        raise UnsupportedError(
            "torch has no 2:4 kernel for FP8 linear layers",
            where="--precision",
            found=precision,
            hint=f"measure fp8 or bf16+{SPARSITY}",
        )
    needed = _FP8_CAPABILITY if dense == "fp8" else _SPARSE_CAPABILITY if sparsity else None
    if needed is None:
        return
    found = torch.cuda.get_device_capability() if device == "cuda" else None
    if found is None or found < needed:
        raise UnsupportedError(
            f"{precision} needs a GPU of compute capability {needed[0]}.{needed[1]}",
            where="--precision",
            found="no CUDA device" if found is None else f"{found[0]}.{found[1]}",
            hint="leave this precision out of --precision (of a run: --bench-precisions), or use such a GPU",
        )


def convert_linears_(model: Any, precision: str) -> int:
    """Replace the linear layers inside the decoder layers, in place; returns how many.

    Embedding and LM head stay as they are, as in an exported checkpoint. A layer whose shape has no kernel
    is an UnsupportedError: converting only the others would measure another model.
    """
    dense, sparsity = split_precision(precision)
    if dense != "fp8" and not sparsity:
        return 0
    num_converted = 0
    for layer in model.get_decoder().layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if not isinstance(child, nn.Linear):
                    continue
                if any(size % _MULTIPLE for size in child.weight.shape):
                    raise UnsupportedError(
                        f"{precision} kernels need both sides of every linear layer divisible by {_MULTIPLE}",
                        where=name,
                        found=" x ".join(map(str, child.weight.shape)),
                        hint=f"prune to sizes divisible by {_MULTIPLE}, or leave this precision out",
                    )
                if sparsity:
                    zeroed = torch.sparse.to_sparse_semi_structured(sparsify_2_of_4(child.weight.detach()))
                    child.weight = nn.Parameter(zeroed, requires_grad=False)
                else:
                    setattr(parent, name, Fp8Linear(child))
                num_converted += 1
    return num_converted
