"""The tables of docs/results/README.md and README.md: from the JSON of docs/results/, and from the code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.report.results import Results
from compressor.evaluation.record import EvaluationRecord
from compressor.pipeline.promise import Measured, promise_row
from compressor.pipeline.report import result_tables
from compressor.pipeline.summary import ExportRecord
from compressor.planning.outcome import Promise
from tests.corruptions.report import RESULTS, corruption_rows, missed_lines
from tests.faults.report import fault_rows, problem_lines
from tests.fuzz.report import found_lines, fuzz_rows
from tests.gpu.study.tables import GPU_TABLES
from tests.performance.baseline_results import baseline_rows
from tests.performance.code_tables import CODE_TABLES, Rows
from tests.performance.distillation_results import distillation_rows
from tests.performance.edge_llm_results import edge_llm_rows
from tests.performance.forecast_results import forecast_rows
from tests.performance.gate_results import gate_table
from tests.performance.interleave_results import interleave_rows
from tests.performance.kept import ROOT
from tests.performance.memory_results import memory_rows
from tests.performance.onnx_results import onnx_standard_rows
from tests.performance.quantised_results import quantised_repair_rows
from tests.performance.recovery_results import recovery_rows
from tests.performance.sparsity_results import sparse_training_rows, sparsity_rows
from tests.performance.student_results import PARTS, student_rows

_MARKER = "<!-- table: {name} -->"
_END = "<!-- end -->"


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
    "recovery": lambda result: _table(*recovery_rows(result["data"])),
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
