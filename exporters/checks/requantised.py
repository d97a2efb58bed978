"""A quantised model that was repaired: weights on the FP8 grid, zeros and maxima against its source.

That its FP8 checkpoint is its 16-bit weights, rounded once, is checked wherever there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import dims_of_config
from compressor.quantization.amax import AMAX_FILE, read_amax, recorded
from compressor.quantization.e4m3 import E4M3, E4M3_MAX, scale_of
from exporters.checks.equality import expect_bits, expect_equal


def groups_of(directory: Path) -> Iterator[tuple[str, ...]]:
    """Full names of the linear layers of a checkpoint that read the same input."""
    dims = dims_of_config(read_config(directory))
    for index in range(dims.num_hidden_layers):
        for modules in dims.family.sharing_input:
            yield tuple(f"{dims.family.layers}.{index}.{module}" for module in modules)


def weight_scales(student: Path) -> dict[str, torch.Tensor]:
    """The scale that every linear layer's FP8 weight has, by the layer's full name, from the 16-bit weights.

    That of its own maximum; of the largest one among the layers that share its input where just that is
    recorded, as a repair of the quantised model does.
    """
    amax = read_amax(student) if (student / AMAX_FILE).is_file() else {}
    scales = {}
    with CheckpointReader(student) as reader:
        for sharing in groups_of(student):
            own = {name: reader.tensor(f"{name}.weight").abs().max().float() for name in sharing}
            largest = torch.stack(list(own.values())).max()
            for name, maximum in own.items():
                is_shared = amax.get(f"{name}.weight_amax", maximum) == largest
                scales[name] = scale_of(largest if is_shared else maximum)
    return scales


def check_maxima(directory: Path, source: Path, accepted: set[str]) -> int:
    """Refuse maxima that do not follow from the source's and the repaired weights; returns their number.

    A repaired weight takes the largest maximum among the layers that share its input, which it does not
    exceed; any other weight keeps its own. Maxima of inputs, keys and values only grow.
    """
    before, after = read_amax(source), read_amax(directory)
    if set(before) != set(after):
        odd = min(set(before) ^ set(after))
        raise VerificationError("the maxima are of other tensors than the source's", where=odd)
    of_weights = {}
    for sharing in groups_of(directory):
        largest = torch.stack([recorded(before, f"{name}.weight_amax") for name in sharing]).max()
        for name in sharing:
            own = recorded(before, f"{name}.weight_amax")
            of_weights[f"{name}.weight_amax"] = largest if f"{name}.weight" in accepted else own
    for name, value in after.items():
        if name in of_weights:
            what = "a weight's maximum is not that of the layers that share its input, or its own"
            expect_equal(what, of_weights[name].item(), value.item(), where=name)
        elif value < before[name]:
            raise VerificationError(
                "a maximum is smaller than before the repair",
                where=name,
                expected=f"at least {before[name].item()}",
                found=value.item(),
            )
    return len(after)


def check_on_grid(reader: CheckpointReader, amax: Mapping[str, torch.Tensor], accepted: set[str]) -> int:
    """Refuse a repaired 16-bit weight that is no value of its FP8 grid; returns how many there are."""
    for name in sorted(accepted):
        weight, largest = reader.tensor(name), recorded(amax, f"{name}_amax")
        scale = largest / E4M3_MAX
        codes = (weight.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
        wanted = (codes.float() * scale).clamp(-largest, largest).to(weight.dtype)
        # The largest stays as it was; in float32 the product may be the number beside it.
        wanted = torch.where(weight.abs().float() == largest, weight, wanted)
        expect_bits(name, wanted + 0.0, weight + 0.0, against="its FP8 grid")
    return len(accepted)


def check_zeros(reader: CheckpointReader, source: CheckpointReader, sparse: set[str]) -> dict[str, JsonValue]:
    """Refuse a weight that the source drops and the repair filled."""
    for name in sparse:
        if bool((reader.tensor(name)[source.tensor(name) == 0] != 0).any()):
            raise VerificationError("a repair filled a zero of a sparse weight", where=name)
    return {"num_sparse_tensors": len(sparse)} if sparse else {}
