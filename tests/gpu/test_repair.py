"""The repair on a GPU, beside the same on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from compressor import api
from compressor.recipe.recipe import Calibration, Environment, Quantize, Sparsify

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("fp8", [False, True])
def test_a_sparse_model_is_repaired_as_on_the_cpu(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, fp8: bool
) -> None:
    calibration = Calibration(data=str(tiny_text), size=24, seq_len=64)
    cpu, gpu = (
        api.Execution(environment=Environment(dtype="float32", device=device)) for device in ("cpu", "cuda")
    )
    settings = Sparsify(method="magnitude")
    given = api.sparsify(
        str(tiny_checkpoint), tmp_path / "sparse", settings=settings, calibration=calibration, execution=cpu
    )
    if fp8:
        given = api.quantize(
            str(given.path),
            tmp_path / "fp8",
            settings=Quantize(fp8=True),
            calibration=calibration,
            execution=cpu,
        )
    made = [
        api.reconstruct(
            str(given.path),
            tmp_path / name,
            teacher=str(tiny_checkpoint),
            calibration=calibration,
            steps=0 if fp8 else 8,
            execution=execution,
        )
        for name, execution in (("cpu", cpu), ("gpu", gpu))
    ]
    expected, found = (one.details["layers"] for one in made)
    assert set(found) == set(expected)
    for name, layer in expected.items():
        assert found[name]["error_ratio"] == pytest.approx(layer["error_ratio"], rel=0.05), name
    before, after = load_file(given.path / WEIGHTS), load_file(made[1].path / WEIGHTS)
    for name in expected:
        assert not after[name][before[name] == 0].any(), name
