from __future__ import annotations

import pytest

from compressor.core.hardware import gpu_named


@pytest.mark.parametrize(
    ("device_name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362),
        ("Tesla T4", None),
    ],
)
def test_a_board_counts_with_the_rate_of_its_own_datasheet(device_name: str, teraflops: int | None) -> None:
    gpu = gpu_named(device_name)
    assert (gpu.bf16_flops_per_s / 1e12 if gpu else None) == teraflops
