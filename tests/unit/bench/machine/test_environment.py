from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bench.design.arms import Arm
from bench.machine import environment
from bench.machine.environment import describe_environment, model_files, take_snapshot


def test_the_machine_is_described_without_its_paths() -> None:
    snapshot = take_snapshot()
    described = describe_environment(before=snapshot, after=snapshot)
    assert described.cpu
    assert 1 <= described.num_usable_cores <= described.num_logical_cores
    assert described.memory_bytes > 2**28
    assert described.versions["onnxruntime-genai"] != "absent"
    assert str(Path(environment.__file__).parents[2]) not in described.model_dump_json()


def test_every_file_of_a_model_is_digested_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "inner" / "weights").write_bytes(b"1234")
    arm = Arm(
        id="a", model="a", precision="fp32", path=tmp_path, runtime="onnxruntime-genai", num_parameters=1
    )
    files = model_files(arm)
    assert list(files) == ["inner/weights", "model.onnx"]
    assert files["model.onnx"].sha256 == hashlib.sha256(b"graph").hexdigest()
    assert files["inner/weights"].size_bytes == 4


def test_a_container_digest_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_CONTAINER_DIGEST", "sha256:abc")
    snapshot = take_snapshot()
    assert describe_environment(before=snapshot, after=snapshot).container_digest == "sha256:abc"
