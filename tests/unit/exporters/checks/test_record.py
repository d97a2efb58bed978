"""Recorded figures against measured ones: the noise of another machine passes, another figure does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import VerificationError
from compressor.runs.artifact import ModelArtifact, fingerprint_of, write_json
from exporters.checks.record import check_figures
from exporters.registry import exporter_of
from exporters.verification.comparison import LogitComparison
from exporters.verification.record import VERIFICATION_FILE, Verification, details_of, write_verification
from exporters.verification.tolerance import TOLERANCES

NOISE = LogitComparison(
    num_positions=2048, max_abs=3e-5, mean_abs=2e-6, max_reference=10.0, kl=1e-9, num_agreeing=2048
)


def verification(compared: LogitComparison | None, *, name: str = "onnx", equal: int = 21) -> Verification:
    exporter = exporter_of(name)
    return exporter.verification(
        {"num_equal_initialisers": equal},
        logits=compared and {"all": compared},
        tolerance=compared and TOLERANCES[exporter.precision],
    )


def recorded(directory: Path, found: Verification) -> ModelArtifact:
    """An export's record, as its stage leaves it."""
    write_verification(directory, found)
    inputs = {"stage": "export-onnx"}
    return ModelArtifact(
        path=directory,
        stage="export-onnx",
        fingerprint=fingerprint_of(inputs),
        lineage=("source", "export-onnx"),
        num_parameters=1,
        inputs=inputs,
        details=dict(details_of(found, None)),
    )


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0, 9.0])
def test_the_noise_of_another_machine_is_no_edit(tmp_path: Path, factor: float) -> None:
    artifact = recorded(tmp_path, verification(NOISE))
    again = replace(NOISE, max_abs=NOISE.max_abs * factor, mean_abs=NOISE.mean_abs * factor)

    check_figures(tmp_path, artifact, verification=verification(again))


@pytest.mark.parametrize("name", ["onnx", "onnx-int4"])
def test_another_figure_is_an_edit(tmp_path: Path, name: str) -> None:
    artifact = recorded(tmp_path, verification(replace(NOISE, max_abs=8.0), name=name))

    with pytest.raises(VerificationError, match="not what was found") as caught:
        check_figures(tmp_path, artifact, verification=verification(NOISE, name=name))
    assert "max_abs" in str(caught.value)


@pytest.mark.parametrize("ran_then", [True, False])
def test_a_machine_without_the_kernels_compares_what_both_could(tmp_path: Path, ran_then: bool) -> None:
    then, now = (NOISE, None) if ran_then else (None, NOISE)
    artifact = recorded(tmp_path, verification(then, name="onnx-fp16"))

    check_figures(tmp_path, artifact, verification=verification(now, name="onnx-fp16"))
    with pytest.raises(VerificationError, match="num_equal_initialisers"):
        check_figures(tmp_path, artifact, verification=verification(now, name="onnx-fp16", equal=20))


@pytest.mark.parametrize(("num_positions", "num_more"), [(2048, 40), (4, 1), (30, 1)])
def test_a_share_of_positions_moves_by_few_of_them(tmp_path: Path, num_positions: int, num_more: int) -> None:
    then = replace(NOISE, num_positions=num_positions, num_agreeing=num_positions - num_more)
    now = replace(then, num_agreeing=num_positions)
    for one, other in ((then, now), (now, then)):
        artifact = recorded(tmp_path, verification(one, name="onnx-int4"))
        check_figures(tmp_path, artifact, verification=verification(other, name="onnx-int4"))


@pytest.mark.parametrize(("said", "found"), [(0.9, 0.6), (1.0, 0.95), (0.5, 0.6), (0.03, 0.0)])
def test_another_share_is_an_edit(tmp_path: Path, said: float, found: float) -> None:
    shares = [replace(NOISE, num_positions=2000, num_agreeing=int(2000 * share)) for share in (said, found)]
    artifact = recorded(tmp_path, verification(shares[0], name="onnx-int4"))
    with pytest.raises(VerificationError, match="top1_agreement"):
        check_figures(tmp_path, artifact, verification=verification(shares[1], name="onnx-int4"))


@pytest.mark.parametrize("share", [1.01, -0.01, 1.5, "1.0", None])
def test_what_is_no_share_is_an_edit(tmp_path: Path, share: Any) -> None:
    found = verification(replace(NOISE, num_agreeing=0 if share == -0.01 else 2048), name="onnx-int4")
    artifact = recorded(tmp_path, found)
    record: dict[str, Any] = dict(found.to_json())
    record["logits"]["all"]["top1_agreement"] = share
    write_json(tmp_path / VERIFICATION_FILE, record)
    with pytest.raises(VerificationError, match="top1_agreement"):
        check_figures(tmp_path, replace(artifact, details=record), verification=found)
