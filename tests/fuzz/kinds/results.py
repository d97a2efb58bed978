"""Benchmarks that others measured: compared by the gate on speed, and written as pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from bench.report.results import CellResult, NotMeasured, Quality, Rates, Results, Roofline
from tests.fuzz.commands import called, commanded
from tests.fuzz.kind import Finished, Kind, Seed, Target, Workspace
from tests.fuzz.mutations import mutated_json
from tests.fuzz.pages import problems_of_pages
from tests.unit.bench.results_by_hand import cell_of, gpu, results_of

_BEFORE, _NOW = "before.json", "now.json"


def _by_hand() -> Results:
    """A benchmark with something of everything that a page shows."""
    cell = cell_of([2.0, 2.01] * 3, [1.0, 1.01] * 3)
    roofline = Roofline(
        baseline_floor_s=1.0,
        candidate_floor_s=0.5,
        best_speedup=2.0,
        reached=1.0,
        baseline_share=0.5,
        candidate_share=0.5,
    )
    failed = CellResult(isl=16, osl=4, batch_size=2, status="FAIL", reason="too large")
    made = results_of([cell.model_copy(update={"roofline": roofline}), failed], gpus=(gpu(),))
    return made.model_copy(
        update={
            "quality": (Quality(model="teacher", metric="perplexity", value=9.0),),
            "rates": Rates(bandwidth_bytes_per_s=1e10, matmul_ops_per_s={"fp32": 1e11}, device="cpu"),
            "not_measured": (NotMeasured(what="student FP8", reason="no kernels"),),
        }
    )


def result_seeds(scratch: Path) -> list[Seed]:
    del scratch
    own = json.dumps(_by_hand().to_json()).encode()
    results = Path(__file__).resolve().parents[3] / "docs" / "results"
    measured = json.loads((results / "demo.json").read_text(encoding="utf-8"))["data"]["bench"]
    real = json.dumps({**measured, "comparisons": measured["comparisons"][:1]}).encode()
    return [
        Seed(files={_BEFORE: one, _NOW: one}, targets=(Target(file=_NOW, change=mutated_json),))
        for one in (own, own, real)
    ]


def read_result(workspace: Workspace, way: int) -> Iterator[Finished]:
    from bench.report.write import read_results, write_reports

    files = [workspace.input / name for name in (_BEFORE, _NOW)]
    if way % 2:
        yield commanded("bench", "compare", *(reversed(files) if way % 4 == 1 else files))
    else:
        yield called(lambda: write_reports(read_results(files[1]), workspace.out))


RESULT_KINDS = (
    Kind(
        name="bench",
        seeds=result_seeds,
        read=read_result,
        check=lambda workspace: problems_of_pages(workspace.run),
    ),
)
