"""Cross-entropy of student and teacher on every domain's held-out text, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compressor.core.processes import on_main
from compressor.data.tokenise import TokenArray
from compressor.distillation.module import DistillationModule
from compressor.training.config import TrainingConfig
from compressor.training.sharding import reshard_


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
        for placed in (self._module, self._module.teacher):
            if placed is not None:
                reshard_(placed)
        return on_main(lambda: total / num_tokens)
