"""TensorRT-LLM through its own benchmark, `trtllm-bench`, as a subprocess found on PATH.

A run is a process: it loads an engine or a checkpoint, warms up, serves a data set of ours with a fixed
number of requests in flight, and leaves a JSON report. Definitions are the tool's: total latency from
the first request's start to the last one's end, output throughput with first tokens, time per output
token without them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.report.results import Absent
from bench.runtimes.base import Requests, ServingRun
from bench.runtimes.model_config import CONFIG_FILE, require_file, section
from bench.runtimes.reports import no_tail, positive_number, stored_precision
from compressor.choices.runtimes import RUNTIMES
from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.core.programs import failure, running

EXECUTABLE = "trtllm-bench"
ENGINE_FILE = "rank0.engine"
_REPORT = f"the report of {EXECUTABLE}"
_RIGHT_ONE = "use the TensorRT-LLM 1.2.1 container"
_MS = 1000


class TensorrtLlm:
    """Serves Hugging Face checkpoints, and engines with the checkpoint they were built from."""

    def check(self, path: Path, *, engine: Path | None = None) -> None:
        """See `bench.runtimes.base.ServingRuntime.check`."""
        require_file(path, CONFIG_FILE, holds="Hugging Face checkpoint")
        if engine is not None:
            require_file(engine, ENGINE_FILE, holds="TensorRT engine")
        RUNTIMES["tensorrt-llm"].require_found()

    def stored_precision(self, path: Path) -> str:
        """See `bench.runtimes.base.ServingRuntime.stored_precision`."""
        return stored_precision(path)

    def serve(
        self, path: Path, requests: Requests, *, vocab_size: int, seed: int, engine: Path | None = None
    ) -> ServingRun:
        """See `bench.runtimes.base.ServingRuntime.serve`."""
        self.check(path, engine=engine)
        with tempfile.TemporaryDirectory() as scratch:
            dataset, report = Path(scratch) / "dataset.jsonl", Path(scratch) / "report.json"
            write_dataset(dataset, requests, vocab_size=vocab_size, seed=seed)
            command = command_line(path, requests, dataset=dataset, report=report, engine=engine)
            with running(EXECUTABLE, command) as program:
                program.wait(time.monotonic() + requests.timeout_s)
                output = program.output()
            if not report.is_file():
                raise failure(EXECUTABLE, 0, output)
            return read_report(read_json_mapping(report, what=_REPORT), requests)


def command_line(
    path: Path, requests: Requests, *, dataset: Path, report: Path, engine: Path | None = None
) -> list[str]:
    """The call of `trtllm-bench`: engine backend for an engine, else the PyTorch backend.

    The checkpoint is named in both: the tool takes the tokenizer from it.
    """
    backend = ["--backend", "pytorch"]
    if engine is not None:
        backend = ["--backend", "tensorrt", "--engine_dir", str(engine)]
    return [
        *(EXECUTABLE, "--model", path.name, "--model_path", str(path), "throughput", *backend),
        *("--dataset", str(dataset), "--streaming", "--concurrency", str(requests.concurrency)),
        *("--num_requests", str(requests.num_requests), "--warmup", str(requests.num_warmup_requests)),
        *("--report_json", str(report)),
    ]


def write_dataset(path: Path, requests: Requests, *, vocab_size: int, seed: int) -> None:
    """Seeded random prompts in the tool's format, equal for every model of a comparison."""
    generator = np.random.default_rng([seed, requests.isl, requests.osl])
    prompts = generator.integers(0, vocab_size, size=(requests.num_requests, requests.isl))
    lines = [
        json.dumps({"task_id": index, "input_ids": prompt.tolist(), "output_tokens": requests.osl})
        for index, prompt in enumerate(prompts)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_report(report: Mapping[str, object], requests: Requests) -> ServingRun:
    """A report as numbers in SI units.

    A VerificationError when a key is missing, a value is no positive number, or requests or tokens differ
    from what was asked for.
    """
    info, performance, streaming = (
        section(report, name, what=_REPORT) for name in ("request_info", "performance", "streaming_metrics")
    )
    percentiles = section(performance, "request_latency_percentiles_ms", what=_REPORT)
    _verify_work(info, requests)
    return ServingRun(
        duration_s=_number(performance, "total_latency_ms") / _MS,
        requests_per_s=_number(performance, "request_throughput_req_s"),
        output_tokens_per_s=_number(performance, "system_output_throughput_tok_s"),
        total_tokens_per_s=_number(performance, "system_total_throughput_tok_s"),
        output_tokens_per_s_per_user=_number(performance, "output_throughput_per_user_tok_s"),
        output_tokens_per_s_per_gpu=_number(performance, "output_throughput_per_gpu_tok_s"),
        latency_s=_number(performance, "avg_request_latency_ms") / _MS,
        latency_p99_s=_tail(percentiles, requests.num_requests),
        ttft_s=_streamed(streaming, "avg_ttft_ms"),
        tpot_s=_streamed(streaming, "avg_tpot_ms") if requests.osl > 1 else Absent(absent="osl = 1"),
    )


def _number(part: Mapping[str, object], name: str) -> float:
    return positive_number(part, name, of=_REPORT, hint=_RIGHT_ONE)


def _verify_work(info: Mapping[str, object], requests: Requests) -> None:
    expected = {
        "num_requests": requests.num_requests,
        "avg_input_length": requests.isl,
        "avg_output_length": requests.osl,
    }
    found = {name: info.get(name) for name in expected}
    if found != expected:
        raise VerificationError(
            f"{EXECUTABLE} did not do the requested work",
            expected=expected,
            found=found,
            hint=f"{_RIGHT_ONE}, whose reports are known to be right",
        )


def _tail(percentiles: Mapping[str, object], num_requests: int) -> float | Absent:
    return no_tail(num_requests) or _number(percentiles, "p99") / _MS


def _streamed(metrics: Mapping[str, object], name: str) -> float | Absent:
    return _number(metrics, name) / _MS if name in metrics else Absent(absent="reported only with streaming")
