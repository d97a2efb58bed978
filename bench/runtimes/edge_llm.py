"""TensorRT-Edge-LLM's engines through its own benchmark, `llm_bench`, as a subprocess found on PATH.

The program measures a batch's prompt and its output tokens in two calls, with random inputs, and writes a CSV
line for each: the mean time of the repeated prompt, and the time of one sequence of output tokens. A run of
this table is both: the batch's sequences start and end together, so every request's latency is the sum. The
options and columns are those of TensorRT-Edge-LLM 0.11.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench.report.results import Absent
from bench.runtimes.base import Requests, ServingRun
from bench.runtimes.model_config import require_file
from bench.runtimes.reports import positive_number
from compressor.choices.formats import FORMATS
from compressor.choices.runtimes import RUNTIMES
from compressor.core.errors import UsageError, VerificationError
from compressor.core.programs import failure, running
from compressor.runs.artifact import read_artifact

NAME, EXECUTABLE, ENGINE_FILE = "tensorrt-edge-llm", "llm_bench", "llm.engine"
_REPORT = f"the CSV file of {EXECUTABLE}"
_HINT = "use TensorRT-Edge-LLM 0.11, whose files are known to be right"
_MS = 1000
Row = Mapping[str, str]


class EdgeLlm:
    """Runs engines of `export --format tensorrt-edge-llm`; a checkpoint alone cannot run."""

    def check(self, path: Path, *, engine: Path | None = None) -> None:
        """See `bench.runtimes.base.ServingRuntime.check`."""
        if engine is None:
            raise UsageError(
                f"{NAME} runs engines, not checkpoints",
                where=str(path),
                hint=f"export the model with --format {NAME}, and give --engine EXPORT/engine once per MODEL",
            )
        require_file(engine, ENGINE_FILE, holds="engine of TensorRT-Edge-LLM")
        RUNTIMES[NAME].require_found()

    def stored_precision(self, path: Path) -> str:
        """See `bench.runtimes.base.ServingRuntime.stored_precision`; it is that of the engine's export."""
        stage = read_artifact(path.parent).stage
        rows = [row for row in FORMATS.values() if row.option == NAME and stage == f"export-{row.name}"]
        if not rows:
            raise UsageError(
                "an engine is measured in the directory of its export, which knows its precision",
                where=str(path.parent),
                expected=f"export --format {NAME}",
                found=stage,
                hint="name the directory engine/ inside the export",
            )
        return rows[0].precisions[0]

    def serve(
        self, path: Path, requests: Requests, *, vocab_size: int, seed: int, engine: Path | None = None
    ) -> ServingRun:
        """See `bench.runtimes.base.ServingRuntime.serve`; inputs are the program's, by the seed."""
        self.check(path, engine=engine)
        assert engine is not None, "checked"
        deadline_s = time.monotonic() + requests.timeout_s
        found: dict[str, Row] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for mode in modes(requests):
                out = Path(scratch) / mode
                out.mkdir()
                command = command_line(engine, requests, mode=mode, out=out, seed=seed)
                with running(EXECUTABLE, command) as program:
                    program.wait(deadline_s)
                    output = program.output()
                files = sorted(out.glob("e2e_*.csv"))
                if len(files) != 1:
                    raise failure(EXECUTABLE, 0, output)
                found[mode] = read_row(files[0])
        return read_rows(found, requests)


def modes(requests: Requests) -> tuple[str, ...]:
    """The calls of one run: the first output token comes with the prompt."""
    return ("prefill", "decode") if requests.osl > 1 else ("prefill",)


def command_line(engine: Path, requests: Requests, *, mode: str, out: Path, seed: int) -> list[str]:
    """One call of `llm_bench`. The prompt is repeated for as many batches as the requests make."""
    batches = -(-requests.num_requests // requests.concurrency)
    length = {
        "prefill": ("--inputLen", str(requests.isl)),
        "decode": ("--pastKVLen", str(requests.isl), "--osl", str(requests.osl)),
    }
    return [
        *(EXECUTABLE, "--engineDir", str(engine), "--mode", mode, *length[mode]),
        *("--batchSize", str(requests.concurrency), "--iterations", str(batches)),
        *("--warmup", str(-(-requests.num_warmup_requests // requests.concurrency))),
        *("--seed", str(seed % 2**31), "--outputDir", str(out)),
    ]


def read_row(path: Path) -> Row:
    """The one line of a CSV file of the program; a VerificationError for anything else."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != 1:
        raise VerificationError(
            f"{_REPORT} does not hold one measurement", where=path.name, found=len(rows), hint=_HINT
        )
    return rows[0]


def read_rows(rows: Mapping[str, Row], requests: Requests) -> ServingRun:
    """Both measurements as numbers in SI units.

    A VerificationError when a column is missing, a time is no positive number, or another batch or length
    was measured than was asked for.
    """
    seconds = {mode: _seconds(mode, row, requests) for mode, row in rows.items()}
    batch, total_s = requests.concurrency, sum(seconds.values())
    rate = batch * requests.osl / total_s
    return ServingRun(
        duration_s=total_s,
        requests_per_s=batch / total_s,
        output_tokens_per_s=rate,
        total_tokens_per_s=batch * (requests.isl + requests.osl) / total_s,
        output_tokens_per_s_per_user=requests.osl / total_s,
        output_tokens_per_s_per_gpu=rate,
        latency_s=total_s,
        latency_p99_s=Absent(absent="all requests of a batch end together"),
        ttft_s=seconds["prefill"],
        tpot_s=seconds["decode"] / (requests.osl - 1) if requests.osl > 1 else Absent(absent="osl = 1"),
    )


def _seconds(mode: str, row: Row, requests: Requests) -> float:
    """The time of a mode's batch, after a look at what was measured."""
    length = {"prefill": "input_len", "decode": "past_kv_len"}[mode]
    expected = {"mode": mode, "batch_size": str(requests.concurrency), length: str(requests.isl)}
    expected |= {"osl": str(requests.osl)} if mode == "decode" else {}
    found = {name: str(row.get(name)).lower() for name in expected}
    if found != expected:
        raise VerificationError(
            f"{EXECUTABLE} did not do the requested work", expected=expected, found=found, hint=_HINT
        )
    name = "e2e_time_ms"
    try:
        number: object = float(row[name])
    except (KeyError, TypeError, ValueError):
        number = row.get(name)
    return positive_number({name: number}, name, of=_REPORT, hint=_HINT) / _MS
