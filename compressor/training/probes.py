"""Fixed probes: a trained model's logits, computed from memory before its files are written.

A verifier computes them again from the files with plain transformers. So weights under wrong names,
layers in another order, or a config that says another rotation or activation than the one that was
trained show, even where every checksum is right.

The probes are a few sequences of seeded random tokens. Half of them stand at consecutive positions,
half are spread over the model's whole context, so that a changed rotation shows where it matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from compressor.core.errors import VerificationError
from compressor.core.json_files import refuse_other_version

PROBES_FILE = "probes.safetensors"
SCHEMA = "compress-export/probes/1"
NUM_PROBES = 4
PROBE_TOKENS = 64
KEPT_POSITIONS = 2
_SEED = 20_251_125
_TENSORS = ("input_ids", "position_ids", "logits")

# Largest difference over the largest logit. Another machine sums in another order; bfloat16 forward
# passes (weights gathered in bfloat16) lose most of the mantissa.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What a model answered.

    Attributes:
        input_ids: `[NUM_PROBES, S]`.
        position_ids: `[NUM_PROBES, S]`.
        logits: `[NUM_PROBES, K, vocab_size]` at the last K positions, float32.
        compute_dtype: Of the forward pass; a key of `TOLERANCES`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    logits: torch.Tensor
    compute_dtype: str


def probe_inputs(*, vocab_size: int, max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and positions of the probes, both `[NUM_PROBES, S]`."""
    length = min(PROBE_TOKENS, max_length)
    ids = np.random.default_rng(_SEED).integers(vocab_size, size=(NUM_PROBES, length))
    near = torch.arange(length)
    far = near * (max_length // length)
    positions = torch.stack([near if number % 2 == 0 else far for number in range(NUM_PROBES)])
    return torch.from_numpy(ids), positions


@torch.no_grad()
def probe_logits(model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """A causal language model's logits at the probes' last positions, float32 on the CPU."""
    device = next(model.parameters()).device
    output = model(
        input_ids=input_ids.to(device),
        # A whole mask: without one, positions with gaps would be taken for packed documents.
        attention_mask=torch.ones_like(input_ids, device=device),
        position_ids=position_ids.to(device),
        use_cache=False,
        logits_to_keep=KEPT_POSITIONS,
    )
    logits: torch.Tensor = output.logits.float().cpu().contiguous()
    return logits


def take_probes(module: nn.Module, *, compute_dtype: str) -> Probes:
    """The probes of `module.student` as it is in memory; every process must take part.

    Args:
        module: The trained module; its `probe_logits` runs the student inside its own forward, which
            gathers what is sharded.
        compute_dtype: Of its forward passes.
    """
    student: Any = module.student
    config = student.config
    input_ids, position_ids = probe_inputs(
        vocab_size=config.vocab_size, max_length=config.max_position_embeddings
    )
    student.eval()
    logits: torch.Tensor = module.probe_logits(input_ids, position_ids)  # type: ignore[operator]
    return Probes(input_ids=input_ids, position_ids=position_ids, logits=logits, compute_dtype=compute_dtype)


def write_probes(directory: Path, probes: Probes) -> None:
    """Write `probes.safetensors`."""
    tensors = {name: getattr(probes, name).contiguous() for name in _TENSORS}
    # One entry: safetensors writes several in an order that changes from process to process.
    save_file(tensors, directory / PROBES_FILE, metadata={SCHEMA: probes.compute_dtype})


def read_probes(directory: Path) -> Probes:
    """The recorded probes.

    Raises:
        VerificationError: when the file is missing, corrupt or not one of ours.
    """
    file = directory / PROBES_FILE
    try:
        with safe_open(file, framework="pt") as reader:
            metadata = reader.metadata() or {}
            tensors = {name: reader.get_tensor(name) for name in _TENSORS}
    except (SafetensorError, OSError) as error:
        raise VerificationError("the probes cannot be read", where=str(file), found=error) from error
    ids, positions, logits = (tensors[name].shape for name in _TENSORS)
    shapes_fit = ids == positions == (NUM_PROBES, ids[-1]) and logits[:2] == (NUM_PROBES, KEPT_POSITIONS)
    for name in metadata:
        refuse_other_version({"schema": name}, SCHEMA, what="the record of logits", where=file)
    if metadata.get(SCHEMA) not in TOLERANCES or not shapes_fit:
        raise VerificationError("the probes are not ours", where=str(file), expected=SCHEMA)
    return Probes(**tensors, compute_dtype=metadata[SCHEMA])


def check_probes(model: Any, probes: Probes, *, where: str) -> float:
    """Compare a model read from files with the probes; returns the largest relative difference.

    Raises:
        VerificationError: beyond the tolerance.
    """
    if probes.logits.shape[-1] != model.config.vocab_size:
        raise VerificationError(
            "the probes are of another vocabulary",
            where=where,
            expected=model.config.vocab_size,
            found=probes.logits.shape[-1],
        )
    found = probe_logits(model, probes.input_ids, probes.position_ids)
    largest = probes.logits.abs().max().item()
    difference = (found - probes.logits).abs().max().item()
    relative = difference / largest if largest else float(difference > 0)
    # Written so that NaN is refused as well.
    if not relative <= TOLERANCES[probes.compute_dtype]:
        raise VerificationError(
            "the files compute something else than the model that was trained",
            where=where,
            expected=f"recorded logits within {TOLERANCES[probes.compute_dtype]:g} of the largest",
            found=f"{relative:.3g}",
        )
    return relative
