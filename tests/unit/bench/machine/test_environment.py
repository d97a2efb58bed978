from __future__ import annotations

import hashlib
import os
import subprocess
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


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = "570.86.15, 81559, 1980, 2619, 700.00, 41, 0x0000000000000004, Enabled, Disabled"
    rows = f"NVIDIA H100 80GB HBM3, {facts}, GPU-1\nNVIDIA H100 PCIe, {facts}, GPU-2\n"

    def answer(command: tuple[str, ...], **options: object) -> subprocess.CompletedProcess[str]:
        is_about_processes = "compute-apps" in command[1]
        stdout = f"GPU-1, 1\nGPU-1, {os.getpid()}\n" if is_about_processes else rows
        return subprocess.CompletedProcess(command, returncode=0, stdout=stdout, stderr="")

    monkeypatch.setattr(subprocess, "run", answer)
    gpus = take_snapshot().gpus
    assert len(gpus) == 2
    assert gpus[0].name == "NVIDIA H100 80GB HBM3"
    assert gpus[0].power_limit_w == "700.00"
    assert [gpu.form for gpu in gpus] == ["SXM", "PCIe"]
    assert [gpu.num_other_processes for gpu in gpus] == [1, 0]
    assert (gpus[0].temperature_c, gpus[0].throttle_reasons) == ("41", "0x0000000000000004")
    assert (gpus[0].ecc, gpus[0].mig) == ("Enabled", "Disabled")


def test_an_older_driver_is_asked_by_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA A100-PCIE-40GB, 470.1, 40960, 1410, 1215, 250.00, 40, 0x1, Enabled, Disabled, GPU-1\n"

    def answer(command: tuple[str, ...], **options: object) -> subprocess.CompletedProcess[str]:
        if "clocks_event_reasons" in command[1]:
            raise subprocess.CalledProcessError(2, command)
        return subprocess.CompletedProcess(command, 0, "" if "compute-apps" in command[1] else line, "")

    monkeypatch.setattr(subprocess, "run", answer)
    (gpu,) = take_snapshot().gpus
    assert (gpu.name, gpu.form, gpu.throttle_reasons) == ("NVIDIA A100-PCIE-40GB", "PCIe", "0x1")


def test_without_nvidia_smi_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert take_snapshot().gpus == ()


def test_a_container_digest_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_CONTAINER_DIGEST", "sha256:abc")
    snapshot = take_snapshot()
    assert describe_environment(before=snapshot, after=snapshot).container_digest == "sha256:abc"
