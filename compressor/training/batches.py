"""What one process trains on: its share of every step's windows, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from compressor.core.processes import rank, world_size
from compressor.data.mixing import WindowStream
from compressor.data.packing import Window


class Batches:
    """This process's micro-batches, drawn step by step: a step's windows only when it begins."""

    def __init__(
        self,
        stream: WindowStream,
        *,
        max_steps: int,
        batch_size: int,
        micro_batch_size: int,
        complete: Callable[[Window], Window],
    ) -> None:
        """Set up; nothing is drawn yet.

        Args:
            stream: The windows of all processes.
            max_steps: Optimizer steps.
            batch_size: Windows per optimizer step over all processes.
            micro_batch_size: Windows per forward pass of this one.
            complete: Adds to each of this process's windows what the stream does not hold.
        """
        self.stream = stream
        self._max_steps, self._batch_size, self._micro_batch_size = max_steps, batch_size, micro_batch_size
        self._complete = complete

    def __len__(self) -> int:
        return self._max_steps * self._batch_size // (world_size() * self._micro_batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        size = self._micro_batch_size
        while True:
            windows = self.stream.step_windows(self._batch_size)[rank() :: world_size()]
            for start in range(0, len(windows), size):
                yield collate([self._complete(window) for window in windows[start : start + size]])


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
