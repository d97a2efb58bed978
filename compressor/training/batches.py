"""What one process trains on: its share of every step's windows, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from compressor.core.processes import rank, world_size
from compressor.data.mixing import WindowStream
from compressor.data.packing import IGNORED, Window
from compressor.training.config import TrainingConfig


class Batches:
    """This process's micro-batches, drawn step by step: a step's windows only when it begins.

    Every process makes equally many forward passes. What the batch does not fill is padded with windows
    of which no token counts, so that the batch need not be a multiple of the processes.
    """

    def __init__(
        self, stream: WindowStream, config: TrainingConfig, complete: Callable[[Window], Window]
    ) -> None:
        """Set up; `complete` adds to each of this process's windows what the stream does not hold."""
        self.stream = stream
        self._config, self._complete = config, complete

    def __len__(self) -> int:
        return self._config.max_steps * self._config.accumulation_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        size = self._config.micro_batch_size
        num_own = size * self._config.accumulation_steps
        while True:
            drawn = self.stream.step_windows(self._config.batch_size)
            own = [self._complete(window) for window in drawn[rank() :: world_size()]]
            if len(own) < num_own:
                first = self._complete(drawn[0])
                uncounted: Window = {**first, "labels": np.full_like(first["labels"], IGNORED)}
                own += [uncounted] * (num_own - len(own))
            for start in range(0, num_own, size):
                yield collate(own[start : start + size])


def collate(windows: Sequence[Window]) -> dict[str, torch.Tensor]:
    """Windows as one batch; `domain_id` becomes `domain_ids`."""
    columns = cast(Sequence[Mapping[str, npt.NDArray[np.generic]]], windows)
    batch = {
        name: torch.from_numpy(np.stack([window[name] for window in columns]))
        for name in columns[0]
        if name != "domain_id"
    }
    batch["domain_ids"] = torch.tensor([window["domain_id"] for window in windows])
    return batch
