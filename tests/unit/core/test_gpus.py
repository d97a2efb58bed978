"""GPUs by the names that their driver gives them."""

from __future__ import annotations

import pytest

from compressor.core.hardware import GPUS, gpu_called


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(name: str, key: str | None) -> None:
    """Names as the driver gives them; the form decides the rate."""
    assert gpu_called(name) is (GPUS[key] if key else None)
    assert GPUS["h100-pcie"].bf16_flops_per_s < GPUS["h100"].bf16_flops_per_s
