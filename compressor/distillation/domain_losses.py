"""Cross-entropy of student and teacher on every domain's held-out text, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.fsdp import FSDPModule

from compressor.core.processes import on_main
from compressor.data.tokenise import TokenArray
from compressor.distillation.module import DistillationModule
from compressor.training.trainer import TrainingConfig


class DomainLosses:
    """Mean cross-entropy by domain; every process computes it and takes the main one's, to the last bit."""

    def __init__(
        self, module: DistillationModule, windows: Sequence[TokenArray], plan: TrainingConfig
    ) -> None:
        """Set up.

        Args:
            module: Holds both models, placed for training.
            windows: Held-out windows `[num_windows, seq_len]` of every domain.
            plan: Its micro-batch size and autocast are used.
        """
        self._module, self._windows, self._plan = module, windows, plan

    def student(self, domain: int) -> float:
        """Nats per token."""
        return self._mean(domain, of_teacher=False)

    def teacher(self, domain: int) -> float:
        """Nats per token."""
        return self._mean(domain, of_teacher=True)

    def _mean(self, domain: int, *, of_teacher: bool) -> float:
        device = next(self._module.parameters()).device
        windows = torch.from_numpy(self._windows[domain].astype("int64"))
        total, num_tokens = 0.0, 0
        with torch.autocast(device.type, torch.bfloat16, enabled=self._plan.bf16):
            for batch in windows.split(self._plan.micro_batch_size):
                loss, counted = self._module.cross_entropy(batch.to(device), of_teacher=of_teacher)
                total += float(loss)
                num_tokens += counted
        # A sharded root gathers for a forward pass and lets go after the backward pass, which never comes: a
        # checkpoint would be of the gathered weights, rounded to the dtype of the computation.
        for placed in (self._module, self._module.teacher):
            if isinstance(placed, FSDPModule):
                placed.reshard()
        return on_main(lambda: total / num_tokens)
