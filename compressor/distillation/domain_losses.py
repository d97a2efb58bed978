"""Cross-entropy of student and teacher on every domain's held-out text, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compressor.core.processes import on_main
from compressor.data.tokenise import TokenArray
from compressor.distillation.module import DistillationModule
from compressor.training.config import TrainingConfig
from compressor.training.sharding import reshard_


def held_out_loss(
    module: DistillationModule,
    windows: Sequence[TokenArray],
    plan: TrainingConfig,
    domain: int,
    *,
    of_teacher: bool,
) -> float:
    """One model's nats per token on a domain's windows `[num_windows, seq_len]`.

    Every process computes it, in the plan's micro-batches and precision, and takes the main one's, to the
    last bit. Compiled layers run without being compiled: a batch of another size would let them be compiled
    for any size, and the steps after it would no longer compute what those of a continued training do.
    """
    device = next(module.parameters()).device
    ids = torch.from_numpy(windows[domain].astype("int64"))
    total, num_tokens = 0.0, 0
    with (
        torch.compiler.set_stance("force_eager"),
        torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16),
    ):
        for batch in ids.split(plan.micro_batch_size):
            loss, counted = module.cross_entropy(batch.to(device), of_teacher=of_teacher)
            total += float(loss)
            num_tokens += counted
    for placed in (module, module.teacher):
        if placed is not None:
            reshard_(placed)
    return on_main(lambda: total / num_tokens)
