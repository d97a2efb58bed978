"""`make results`: long measurements, kept as JSON in docs/results/ with their command and hardware.

`python -m tests.performance.results NAME...` runs some of them; `--tables` only writes the tables of
docs/results/README.md and README.md again from the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.report.results import Results
from compressor.evaluation.record import EvaluationRecord
from compressor.pipeline.report import closed_gap, result_tables
from compressor.pipeline.summary import ExportRecord
from tests.corruptions.report import RESULTS, corruption_rows, missed_lines, write_result
from tests.performance.bounds import measure_all
from tests.performance.distillation_results import distillation_rows, run_distillation
from tests.performance.sparsity_results import (
    run_sparse_training,
    run_sparsity,
    sparse_training_rows,
    sparsity_rows,
)
from tests.performance.student_results import NUM_SEEDS, PARTS, run_students, student_rows, student_seconds

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/demo.yaml"
DEMO = ("run", "--config", RECIPE)
SMOLLM2 = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
GRID = ("--isl-osl", "64/32", "--batch-size", "1,4", "--precision", "fp32,int4")
NO_GPU = "not measured: no CUDA GPU; python -m tests.gpu.bench_study OUT measures it"
ABLATED_SHAPE = "hidden_size=432,intermediate_size=1024"
_MARKER = "<!-- table: {name} -->"
_END = "<!-- end -->"


def run_demo() -> dict[str, Any]:
    """The main job on the real model, as `make demo` runs it."""
    with tempfile.TemporaryDirectory() as scratch:
        summary = _command(*DEMO, "-o", f"{scratch}/demo-out")
    return {
        "closed_gap": closed_gap(EvaluationRecord.model_validate(summary["evaluation"])),
        "curve": summary["distill"]["curve"],
        "tokens": summary["distill"]["tokens"],
        "evaluation": summary["evaluation"],
        "exports": summary["exports"],
        "bench": _without_hashes(summary["bench"]),
        "stages": summary["stages"],
        "plan": summary["plan"],
        "warnings": summary["warnings"],
    }


def run_bench() -> dict[str, Any]:
    """SmolLM2 against a student of its shape family, only pruned: as fast as a distilled one. Twice."""
    with tempfile.TemporaryDirectory() as scratch:
        _command(
            *("prune", SMOLLM2, "--shape", ABLATED_SHAPE, "--importance", "weight-magnitude"),
            *("--calib-data", ".assets/wiki.txt", "--calib-size", "1", "--calib-seq-len", "64"),
            *("-o", f"{scratch}/student"),
        )
        runs = [
            _without_hashes(_command("bench", SMOLLM2, f"{scratch}/student", *GRID, "-o", f"{scratch}/{run}"))
            for run in ("first", "second")
        ]
        return {"student": ABLATED_SHAPE, "first": runs[0], "second": runs[1], "gpu": NO_GPU}


def run_perf() -> dict[str, Any]:
    """The bounds of the design, each with its day: a row may be measured again by itself."""
    today = datetime.now(timezone.utc).date().isoformat()
    return {"bounds": [{**asdict(bound), "passes": bound.passes, "date": today} for bound in measure_all()]}


MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "demo": run_demo,
    "sparsity": lambda: run_sparsity(_command),
    "sparse-training": lambda: run_sparse_training(_command),
    "distillation": lambda: run_distillation(_command),
    "bench": run_bench,
    "perf": run_perf,
}


def record(name: str, *, num_seeds: int) -> None:
    started = datetime.now(timezone.utc)
    command = f"python -m tests.performance.results {name}"
    if name in PARTS:
        data = run_students(name, _command, num_seeds=num_seeds)
        command += f" --seeds {num_seeds}"
        seconds = sum(student_seconds(data))
    else:
        data = MEASUREMENTS[name]()
        seconds = round((datetime.now(timezone.utc) - started).total_seconds())
    write_result(name, command, data, date=started.date().isoformat(), seconds=seconds)


def demo_table(result: dict[str, Any]) -> str:
    data = result["data"]
    caption = (
        f"{result['hardware']['cpu']}, {result['hardware']['num_cpus']} CPUs; distillation on "
        f"{data['tokens']:,} tokens closed {data['closed_gap']:.0%} of the log-perplexity gap between its "
        "student and the teacher."
    )
    parts = [caption]
    found = result_tables(
        EvaluationRecord.model_validate(data["evaluation"]),
        {name: ExportRecord.model_validate(export) for name, export in data["exports"].items()},
        Results.model_validate(data["bench"]),
    )
    for title, header, rows in found:
        parts += ["", f"{title}:", "", *_rows(header, rows)]
    return "\n".join(parts)


def students_table(result: dict[str, Any]) -> str:
    return _table(*student_rows(result["data"]))


def bench_table(result: dict[str, Any]) -> str:
    """Both runs' ratios, whether they agree, and the roofline of the first."""
    compared = zip(*(result["data"][run]["comparisons"] for run in ("first", "second")), strict=True)
    rows = [
        (
            f"{first['candidate']} : {first['baseline']}",
            f"{one['isl']}/{one['osl']} x {one['batch_size']}",
            _speedup(one),
            _speedup(other),
            _agreement(one, other),
            *_roofline(one),
        )
        for first, second in compared
        for one, other in zip(first["cells"], second["cells"], strict=True)
    ]
    header = ("pair", "cell", "speed-up (95 %)", "a second run", "agree", "best possible", "reached")
    rates = result["data"]["first"]["rates"]
    found = f"{rates['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s from memory" + "".join(
        f", {rate / 1e9:.0f} Gop/s in {name}" for name, rate in rates["matmul_ops_per_s"].items()
    )
    return _table(header, rows, "", f"Rates of both runs: {found}. GPU: {result['data']['gpu']}.")


def _speedup(cell: dict[str, Any]) -> str:
    interval = cell["speedup"]
    if interval is None:
        return f"{cell['status']}: {cell['reason']}"
    noisy = "" if cell["status"] == "ok" else f", {cell['status']}"
    return f"{interval['ratio']:.2f}x ({interval['low']:.2f} to {interval['high']:.2f}){noisy}"


def _agreement(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Whether two intervals overlap; a NOISY or failed cell makes no claim."""
    if {one["status"], other["status"]} != {"ok"}:
        return "no claim"
    low = max(one["speedup"]["low"], other["speedup"]["low"])
    return "yes" if low <= min(one["speedup"]["high"], other["speedup"]["high"]) else "no"


def _roofline(cell: dict[str, Any]) -> tuple[str, str]:
    roofline = cell["roofline"]
    if not roofline or "absent" in roofline:
        return "-", "-"
    return f"{roofline['best_speedup']:.2f}x", f"{roofline['reached']:.0%}"


def perf_table(result: dict[str, Any]) -> str:
    rows = [
        (
            bound["what"],
            f"{bound['measured']:.3f} {bound['unit']}",
            "-" if bound["low"] is None else f"{bound['low']:.3f} to {bound['high']:.3f}",
            f"{'at most' if bound['is_upper'] else 'at least'} {bound['required']:.2f}",
            "yes" if bound["passes"] else "no",
            bound["date"],
        )
        for bound in result["data"]["bounds"]
    ]
    return _table(("bound", "measured", "95 % interval", "required", "reached", "on"), rows)


def corruptions_table(result: dict[str, Any]) -> str:
    """Planted faults by artifact, and what was not found."""
    data = result["data"]
    lines = missed_lines(data) or ["- none"]
    return _table(*corruption_rows(data), "", "Not found:", "", *lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": demo_table,
    **dict.fromkeys(PARTS, students_table),
    "sparsity": lambda result: _table(*sparsity_rows(result["data"])),
    "sparse-training": lambda result: _table(
        *sparse_training_rows(result["data"]), "", result["data"]["not_measured"]
    ),
    "distillation": lambda result: _table(*distillation_rows(result["data"])),
    "bench": bench_table,
    "perf": perf_table,
    "corruptions": corruptions_table,
}


def with_tables(text: str) -> str:
    """A document with every marked table made again from its JSON."""
    for name, make in TABLES.items():
        marker, file = _MARKER.format(name=name), RESULTS / f"{name}.json"
        if marker not in text or not file.is_file():
            continue
        table = make(json.loads(file.read_text(encoding="utf-8")))
        before, _, rest = text.partition(marker)
        _, end, after = rest.partition(_END)
        text = f"{before}{marker}\n{table}\n{end}{after}"
    return text


def write_tables() -> None:
    for document in documents_with_tables():
        document.write_text(with_tables(document.read_text(encoding="utf-8")), encoding="utf-8")


def documents_with_tables() -> list[Path]:
    return [ROOT / "README.md", RESULTS / "README.md"]


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *below: str) -> str:
    return "\n".join([*_rows(header, rows), *below])


def _command(*arguments: str, num_threads: int | None = None) -> dict[str, Any]:
    """Run one command line in a process of its own, with so many threads; returns its document."""
    threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
    program = "import sys; from compressor.cli.main import invoke; sys.exit(invoke(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **threads},
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _without_hashes(bench: dict[str, Any]) -> dict[str, Any]:
    return {**bench, "arms": [{**arm, "files": {}} for arm in bench["arms"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Long measurements into docs/results/.")
    names = [*PARTS, *MEASUREMENTS]
    parser.add_argument("names", nargs="*", choices=[*names, []], help="default: all")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, help="of the calibration text, for students")
    parser.add_argument("--tables", action="store_true", help="only make the tables again")
    arguments = parser.parse_args()
    if not arguments.tables:
        for name in arguments.names or names:
            record(name, num_seeds=arguments.seeds)
    write_tables()


if __name__ == "__main__":
    main()
