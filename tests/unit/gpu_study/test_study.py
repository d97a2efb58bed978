"""Everything that `make gpu` runs, at toy size on the CPU; and how its parts stop, go on and say why not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.study import __main__ as study
from tests.gpu.study import cells as cells_module
from tests.gpu.study.cells import Cell, Part, Setting, run_part
from tests.gpu.study.parts import PARTS
from tests.gpu.study.tables import GPU_TABLES


def setting(out: Path, seconds: float = 300.0) -> Setting:
    return Setting(device="cpu", out=out, seconds=seconds, toy=True)


def result(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"gpu-{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def dense_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for cuSPARSELt and FP8 products, which a CPU lacks: the same products, dense."""

    def scaled_mm(first: torch.Tensor, second: torch.Tensor, **settings: Any) -> torch.Tensor:
        return (first.float() @ second.float()).to(settings["out_dtype"])

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)
    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight)
    monkeypatch.setattr(
        torch,
        "_cslt_sparse_mm",
        lambda weight, inputs, out_dtype: scaled_mm(weight, inputs, out_dtype=out_dtype),
    )
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)


@pytest.mark.usefixtures("dense_stand_ins")
@pytest.mark.parametrize("name", PARTS)
def test_every_part_runs_at_toy_size(tmp_path: Path, name: str) -> None:
    assert run_part(name, PARTS[name], setting(tmp_path)) == 0
    found = result(tmp_path, name)
    cells = found["data"]["cells"]
    assert cells
    assert not [figures["reason"] for figures in cells.values() if "reason" in figures]
    assert found["command"] == f"make gpu PART={name}"
    header, rows = GPU_TABLES[name](found["data"])
    assert rows
    assert all(len(row) == len(header) for row in rows)


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    def refuse() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 92 GiB.\nmore")

    part = Part(what="a refusal", cells=lambda _: [Cell(key="too large", measure=refuse)])
    assert run_part("gemm", part, setting(tmp_path)) == 0
    reason = result(tmp_path, "gemm")["data"]["cells"]["too large"]["reason"]
    assert reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 92 GiB."
    _, rows = GPU_TABLES["gemm"](result(tmp_path, "gemm")["data"])
    assert reason in rows[0]


def test_a_mistake_of_ours_is_no_reason(tmp_path: Path) -> None:
    part = Part(what="a typo", cells=lambda _: [Cell(key="typo", measure=lambda: {}["absent"])])
    with pytest.raises(KeyError):
        run_part("gemm", part, setting(tmp_path))


def test_a_part_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    clock = {"now": 0.0}
    monkeypatch.setattr(cells_module.time, "monotonic", lambda: clock["now"])

    def cells(_: Setting) -> list[Cell]:
        def measure(key: str) -> dict[str, Any]:
            made.append(key)
            if key == "second" and made.count(key) == 1:
                clock["now"] += 58.0
                raise TimeoutError("not done in the 60 s that were left")
            return {"value": len(made)}

        return [Cell(key=key, measure=lambda key=key: measure(key)) for key in ("first", "second", "third")]

    part = Part(what="three cells", cells=cells)
    assert run_part("gemm", part, setting(tmp_path, seconds=60)) == 1
    stopped = result(tmp_path, "gemm")["data"]["cells"]
    assert stopped["first"] == {"value": 1}
    assert stopped["second"] == {"reason": "not done in the 60 s that were left", "out_of_time": True}
    assert run_part("gemm", part, setting(tmp_path)) == 0
    assert made == ["first", "second", "second", "third"]
    assert run_part("gemm", part, setting(tmp_path)) == 0
    assert len(made) == 4
    assert run_part("gemm", part, setting(tmp_path), again=True) == 0
    assert len(made) == 7


def test_a_cell_that_hangs_is_interrupted() -> None:
    cell = Cell(key="hangs", measure=lambda: time.sleep(60) or {})
    found = cells_module._figures(cell, 0.2)
    assert found == {"reason": "not done in the 0 s that were left", "out_of_time": True}


def test_at_most_eight_files_and_the_order_of_importance() -> None:
    assert list(PARTS) == ["gemm", "runtime", "distill", "sparsegpt", "calibration"]
    assert set(GPU_TABLES) == set(PARTS)
    assert len(PARTS) <= 8
    assert study.MINUTES <= 8


def test_every_cell_of_a_real_part_has_a_name_of_its_own(tmp_path: Path) -> None:
    for part in PARTS.values():
        keys = [cell.key for cell in part.cells(Setting(device="cuda", out=tmp_path, seconds=1))]
        assert len(keys) == len(set(keys)) > 1


def test_without_a_gpu_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert study.main(["--out", str(tmp_path / "out")]) == study.NO_GPU
    assert "nothing measured" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
