"""What each process of a run takes of what all of them have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.core.processes import on_main, own_share, sum_over_processes


@pytest.mark.parametrize("num_processes", [1, 2, 3, 9])
def test_every_item_belongs_to_one_process(num_processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    parts = []
    for rank in range(num_processes):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(own_share(list(range(7))))
    assert sorted(item for part in parts for item in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert own_share(np.arange(7)).tolist() == parts[-1]


def test_who_works_alone_takes_all_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda *_, **__: None)
    monkeypatch.setattr("compressor.core.processes._waiting_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = on_main(lambda: (own_share([1, 2, 3]), sum_over_processes(torch.ones(1)).item()))
    assert found == ([1, 2, 3], 1.0)
