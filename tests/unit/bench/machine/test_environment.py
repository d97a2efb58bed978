from __future__ import annotations

from pathlib import Path

import pytest

from bench.machine import environment
from bench.machine.environment import describe_environment, take_snapshot


def test_the_machine_is_described_without_its_paths() -> None:
    snapshot = take_snapshot()
    described = describe_environment(before=snapshot, after=snapshot)
    assert described.cpu
    assert 1 <= described.num_usable_cores <= described.num_logical_cores
    assert described.memory_bytes > 2**28
    assert described.versions["onnxruntime-genai"] != "absent"
    assert str(Path(environment.__file__).parents[2]) not in described.model_dump_json()


def test_a_container_digest_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_CONTAINER_DIGEST", "sha256:abc")
    snapshot = take_snapshot()
    assert describe_environment(before=snapshot, after=snapshot).container_digest == "sha256:abc"
