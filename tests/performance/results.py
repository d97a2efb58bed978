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
from functools import partial
from pathlib import Path
from typing import Any

from bench.report.results import Results
from compressor.evaluation.record import EvaluationRecord
from compressor.pipeline.promise import Measured, promise_row
from compressor.pipeline.report import closed_gap, result_tables
from compressor.pipeline.summary import ExportRecord
from compressor.planning.outcome import Promise
from tests.corruptions.report import RESULTS, corruption_rows, missed_lines, write_result
from tests.faults.report import fault_rows, problem_lines
from tests.fuzz.report import found_lines, fuzz_rows
from tests.gpu.study.tables import GPU_TABLES
from tests.performance.baseline_results import baseline_rows, run_baseline
from tests.performance.bounds import measure_all
from tests.performance.code_tables import CODE_TABLES, Rows
from tests.performance.distillation_results import distillation_rows, run_distillation
from tests.performance.edge_llm_results import edge_llm_rows, run_edge_llm
from tests.performance.forecast_results import forecast_rows, run_forecast
from tests.performance.gate_results import gate_table, run_gates
from tests.performance.interleave_results import interleave_rows, run_interleave
from tests.performance.memory_results import memory_rows, run_memory
from tests.performance.onnx_results import onnx_standard_rows, run_onnx_standard
from tests.performance.quantised_results import quantised_repair_rows, run_quantised_repair
from tests.performance.sparsity_results import (
    run_sparse_training,
    run_sparsity,
    sparse_training_rows,
    sparsity_rows,
)
from tests.performance.student_results import NUM_SEEDS, PARTS, run_students, student_rows, student_seconds

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/demo-full.yaml"
DEMO = ("run", "--config", RECIPE)
SMOLLM2 = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
GRID = ("--isl-osl", "64/32", "--batch-size", "1,4", "--precision", "fp32,int4")
PROMISED = (
    *(
        ("--target-speedup", factor, "--isl-osl", "64/32", "--batch-size", "1")
        for factor in ("1.25x", "1.5x")
    ),
    ("--target-speedup", "1.5x", "--isl-osl", "128/16", "--batch-size", "4"),
    ("--target-latency", "20ms", "--isl-osl", "64/32", "--batch-size", "1"),
)
OUTCOME = (
    *("run", SMOLLM2, "--importance", "weight-magnitude", "--repair", "off", "--tokens", "0"),
    *("--calib-data", ".assets/wiki.txt", "--calib-size", "1", "--calib-seq-len", "64"),
    *("--eval-data", ".assets/wiki.txt", "--eval-size", "1", "--formats", "huggingface,onnx"),
    *("--bench-precisions", "fp32"),
)
NO_GPU = "not measured: no CUDA GPU; make gpu PART=runtime measures it"
ABLATED_SHAPE = "hidden_size=432,intermediate_size=1024"
_MARKER = "<!-- table: {name} -->"
_END = "<!-- end -->"


def run_demo() -> dict[str, Any]:
    """The main job on the real model, as `make demo-full` runs it."""
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


def run_promises() -> dict[str, Any]:
    """Targets by outcome: the student that is predicted to reach each, only pruned, and its speed."""
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, target in enumerate(PROMISED):
            summary = _command(*OUTCOME, *target, "-o", f"{scratch}/run-{number}")
            student = summary["plan"]["student"]
            rows[" ".join(target)] = {
                "student": {"dims": student["dims"], "num_parameters": student["num_parameters"]},
                "promise": summary["plan"]["promise"],
                "measured": summary["promise"],
            }
    return {"targets": rows, "run": " ".join(OUTCOME)}


def run_perf() -> dict[str, Any]:
    """The bounds of the design, each with its day: a row may be measured again by itself."""
    today = datetime.now(timezone.utc).date().isoformat()
    return {"bounds": [{**asdict(bound), "passes": bound.passes, "date": today} for bound in measure_all()]}


MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "demo": run_demo,
    "sparsity": lambda: run_sparsity(_command),
    "sparse-training": lambda: run_sparse_training(_command),
    "distillation": lambda: run_distillation(_command),
    "baseline": lambda: run_baseline(_command),
    "forecast": lambda: run_forecast(_command),
    "gates": run_gates,
    "interleave": lambda: run_interleave(_command),
    "edge-llm": lambda: run_edge_llm(_command),
    "memory": lambda: run_memory(_command),
    "onnx-standard": lambda: run_onnx_standard(_command),
    "quantized-repair": lambda: run_quantised_repair(_command),
    "bench": run_bench,
    "promises": run_promises,
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
        elapsed = round((datetime.now(timezone.utc) - started).total_seconds())
        seconds = data["seconds"] if isinstance(data.get("seconds"), int) else elapsed
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


def promises_table(result: dict[str, Any]) -> str:
    rows = [
        (f"`{target}`", f"{row['student']['num_parameters'] / 1e6:.1f}M", *_promise_row(row))
        for target, row in result["data"]["targets"].items()
    ]
    header = (
        "target",
        "student",
        "of the student",
        "conditions",
        "promised",
        "predicted",
        "measured",
        "verdict",
    )
    return _table(header, rows)


def _promise_row(row: dict[str, Any]) -> tuple[str, ...]:
    return promise_row(Promise.model_validate(row["promise"]), Measured.model_validate(row["measured"]))


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


def fuzz_table(result: dict[str, Any]) -> str:
    """Hostile input by its kind, and what it brought to light."""
    data = result["data"]
    machine = f"{result['hardware']['cpu']}, {result['date']}."
    return _table(*fuzz_rows(data), "", machine, "", "Corrected with it:", "", *found_lines(data))


def faults_table(result: dict[str, Any]) -> str:
    """Struck points by command and fault, and where something did not behave."""
    data = result["data"]
    lines = problem_lines(data) or ["- none"]
    return _table(*fault_rows(data), "", "Did not behave:", "", *lines)


def gpu_table(make: Callable[[dict[str, Any]], Any], result: dict[str, Any]) -> str:
    """A part of `make gpu`, with its GPU."""
    return _table(*make(result["data"]), "", f"{result['data']['device']}, {result['date']}.")


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": demo_table,
    **dict.fromkeys(PARTS, students_table),
    "sparsity": lambda result: _table(*sparsity_rows(result["data"])),
    "sparse-training": lambda result: _table(
        *sparse_training_rows(result["data"]), "", result["data"]["not_measured"]
    ),
    "distillation": lambda result: _table(*distillation_rows(result["data"])),
    "baseline": lambda result: _table(*baseline_rows(result["data"])),
    "forecast": lambda result: _table(*forecast_rows(result["data"])),
    "gates": lambda result: _table(*gate_table(result["data"])),
    "interleave": lambda result: _table(*interleave_rows(result["data"])),
    "edge-llm": lambda result: _table(*edge_llm_rows(result["data"])),
    "memory": lambda result: _table(*memory_rows(result["data"])),
    "onnx-standard": lambda result: _table(*onnx_standard_rows(result["data"])),
    "quantized-repair": lambda result: _table(*quantised_repair_rows(result["data"])),
    "bench": bench_table,
    "promises": promises_table,
    "perf": perf_table,
    "corruptions": corruptions_table,
    "fuzz": fuzz_table,
    "faults": faults_table,
    **{f"gpu-{name}": partial(gpu_table, make) for name, make in GPU_TABLES.items()},
}


def with_tables(text: str) -> str:
    """A document with every marked table made again, from its JSON or from the code."""
    for name, make in TABLES.items():
        if (file := RESULTS / f"{name}.json").is_file():
            text = _with_table(text, name, partial(_from_json, make, file))
    for name, rows in CODE_TABLES.items():
        text = _with_table(text, name, partial(_from_code, rows))
    return text


def _with_table(text: str, name: str, make: Callable[[], str]) -> str:
    marker = _MARKER.format(name=name)
    if marker not in text:
        return text
    before, _, rest = text.partition(marker)
    _, end, after = rest.partition(_END)
    return f"{before}{marker}\n{make()}\n{end}{after}"


def _from_json(make: Callable[[dict[str, Any]], str], file: Path) -> str:
    return make(json.loads(file.read_text(encoding="utf-8")))


def _from_code(make: Callable[[], Rows]) -> str:
    return _table(*make())


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
