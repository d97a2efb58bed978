"""`make results`: long measurements, kept as JSON in docs/results/ with their command and hardware.

`python -m tests.performance.results NAME...` runs some of them; `--tables` only writes the tables of
docs/results/README.md and README.md again from the JSON.

Students are measured anew, but for what an interrupted call left in `build`. With `--keep`, those of
docs/results that are still made by the same commands stay as they are, each with the day and the machine it
was measured on; the file's own day, machine and versions are those of the call that wrote it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from compressor.evaluation.record import EvaluationRecord
from compressor.pipeline.report import closed_gap
from tests.corruptions.report import write_result
from tests.performance.baseline_results import run_baseline
from tests.performance.bounds import measure_all
from tests.performance.distillation_results import run_distillation
from tests.performance.edge_llm_results import run_edge_llm
from tests.performance.forecast_results import run_forecast
from tests.performance.gate_results import run_gates
from tests.performance.interleave_results import run_interleave
from tests.performance.kept import ROOT, measuring
from tests.performance.memory_results import run_memory
from tests.performance.onnx_results import run_onnx_standard
from tests.performance.quantised_results import run_quantised_repair
from tests.performance.recovery_results import run_recovery
from tests.performance.sparsity_results import run_sparse_training, run_sparsity
from tests.performance.student_results import NUM_SEEDS, PARTS, run_students, student_seconds
from tests.performance.tables import write_tables

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
    "recovery": lambda: run_recovery(_command),
    "quantized-repair": lambda: run_quantised_repair(_command),
    "bench": run_bench,
    "promises": run_promises,
    "perf": run_perf,
}


def record(name: str, *, num_seeds: int, keeps_recorded: bool = False) -> None:
    """Measure, and write the JSON; what the measurement kept until then goes.

    With `keeps_recorded`, students that were recorded before are taken over.
    """
    today = datetime.now(timezone.utc).date().isoformat()
    command = f"python -m tests.performance.results {name}"
    with measuring(name) as elapsed:
        if name in PARTS:
            data = run_students(name, _command, num_seeds=num_seeds, keeps_recorded=keeps_recorded)
            command += f" --seeds {num_seeds}" + (" --keep" if keeps_recorded else "")
            seconds = sum(student_seconds(data))
        else:
            data = MEASUREMENTS[name]()
            seconds = data["seconds"] if isinstance(data.get("seconds"), int) else elapsed()
        write_result(name, command, data, date=today, seconds=seconds)


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
    parser.add_argument("--keep", action="store_true", help="take over what docs/results holds of students")
    parser.add_argument("--tables", action="store_true", help="only make the tables again")
    arguments = parser.parse_args()
    if not arguments.tables:
        for name in arguments.names or names:
            record(name, num_seeds=arguments.seeds, keeps_recorded=arguments.keep)
    write_tables()


if __name__ == "__main__":
    main()
