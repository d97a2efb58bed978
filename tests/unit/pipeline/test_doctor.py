"""What `doctor` says of a machine, without asking this one for more than it has."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from compressor.cli.render import doctor_text
from compressor.core.errors import DependencyError
from compressor.pipeline.doctor import CONTAINER_SET, BuilderRecord, HubRecord, examine


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH, empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put_builder(directory: Path, script: str) -> None:
    file = directory / "trtllm-build"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_both_dependency_sets_disk_and_hub_are_looked_at(path: Path) -> None:
    report = examine()

    own = {check.name: check for check in report.dependencies}
    assert own["torch"].ok
    assert "lm-eval" not in own
    assert "pytest" not in own
    assert {check.name for check in report.tensorrt_llm_container_set} == set(CONTAINER_SET)
    assert report.free_disk_bytes > 0
    assert report.machine.memory_bytes > 0
    assert report.hub == HubRecord(reachable=False, reason="offline mode is set", has_token=False)
    assert report.trtllm_build == BuilderRecord(reason="no trtllm-build on PATH")
    text = doctor_text(report)
    assert "trtllm-build  no trtllm-build on PATH" in text
    assert "out of reach (offline mode is set)" in text


@pytest.mark.parametrize(
    ("script", "version", "said"),
    [
        ("echo '[TensorRT-LLM] TensorRT-LLM version: 1.2.1'", "1.2.1", "trtllm-build  1.2.1"),
        ("exit 3", None, "does not say which TensorRT-LLM it belongs to"),
        ("exec /bin/sleep 9", None, "trtllm-build  "),
    ],
)
def test_an_engine_builder_is_one_that_says_its_version(
    path: Path, monkeypatch: pytest.MonkeyPatch, script: str, version: str | None, said: str
) -> None:
    put_builder(path, script)
    if "sleep" in script:
        monkeypatch.setattr("exporters.tensorrt_llm.versions._TIMEOUT_S", 0.2)
    report = examine()

    assert report.trtllm_build.version == version
    assert said in doctor_text(report)


@pytest.mark.parametrize(
    ("capability", "fp8", "sparsity"),
    [((7, 5), False, False), ((8, 0), False, True), ((8, 9), True, True), ((9, 0), True, True)],
)
def test_what_a_gpu_can_do_follows_from_its_capability(
    path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fp8: bool, sparsity: bool
) -> None:
    properties = type("Properties", (), {"total_memory": 80 * 10**9})()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)

    (gpu,) = examine().gpus
    assert (gpu.fp8, gpu.sparsity_2_4) == (fp8, sparsity)


def test_a_tree_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("compressor.pipeline.doctor.requires", missing)
    with pytest.raises(DependencyError, match="never installed"):
        examine()
