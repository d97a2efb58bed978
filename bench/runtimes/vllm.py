"""vLLM through its own programs, found on PATH: `vllm serve` for a model, `vllm bench serve` against it.

A run is a server of its own and a client beside it, which waits until the server answers, warms it up, keeps
a fixed number of requests in flight and leaves a JSON report. Prompts are random, of exact length as far as
the tokenizer allows; the server keeps no prefix of an earlier prompt. Keys and options are those of vLLM 0.11
and later.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench.report.results import Absent
from bench.runtimes.base import Requests, ServingRun
from bench.runtimes.model_config import CONFIG_FILE, require_file
from bench.runtimes.reports import no_tail, positive_number, stored_precision
from compressor.choices.runtimes import RUNTIMES
from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.core.programs import failure, running

EXECUTABLE = "vllm"
SERVER, CLIENT = "vllm serve", "vllm bench serve"
REPORT_FILE = "report.json"
_HOST = "127.0.0.1"
_SERVED = "model"  # the name that requests ask for
_REPORT = f"the report of {CLIENT}"
_HINT = "use vLLM 0.11 or later"
_MS = 1000
# Random ids are written as text and read again, which may join a few of them.
_PROMPT_TOLERANCE = 0.02


class Vllm:
    """Serves Hugging Face checkpoints: 16-bit ones, and FP8 ones with `hf_quant_config.json`."""

    def check(self, path: Path, *, engine: Path | None = None) -> None:
        """See `bench.runtimes.base.ServingRuntime.check`."""
        require_file(path, CONFIG_FILE, holds="Hugging Face checkpoint")
        if engine is not None:
            raise UsageError(
                "vLLM runs no engines", where=str(engine), hint="leave --engine out, or use tensorrt-llm"
            )
        RUNTIMES["vllm"].require_found()

    def stored_precision(self, path: Path) -> str:
        """See `bench.runtimes.base.ServingRuntime.stored_precision`."""
        return stored_precision(path)

    def serve(
        self, path: Path, requests: Requests, *, vocab_size: int, seed: int, engine: Path | None = None
    ) -> ServingRun:
        """See `bench.runtimes.base.ServingRuntime.serve`; ids of prompts are the client's, by the seed."""
        self.check(path, engine=engine)
        deadline_s, port = time.monotonic() + requests.timeout_s, _free_port()
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / REPORT_FILE
            client_command = client_line(path, requests, port=port, report=report, seed=seed)
            with (
                running(SERVER, server_line(path, requests, port=port, seed=seed)) as server,
                running(CLIENT, client_command) as client,
            ):
                client.wait(deadline_s, beside=server)
                output = client.output()
            if not report.is_file():
                raise failure(CLIENT, 0, output)
            return read_report(read_json_mapping(report, what=_REPORT), requests)


def server_line(path: Path, requests: Requests, *, port: int, seed: int) -> list[str]:
    """The call of `vllm serve`: as many sequences at once as requests are in flight."""
    return [
        *(EXECUTABLE, "serve", str(path), "--host", _HOST, "--port", str(port)),
        *("--served-model-name", _SERVED, "--seed", str(seed)),
        *("--max-num-seqs", str(requests.concurrency), "--no-enable-prefix-caching"),
    ]


def client_line(path: Path, requests: Requests, *, port: int, report: Path, seed: int) -> list[str]:
    """The call of `vllm bench serve`; the checkpoint gives the tokenizer."""
    return [
        *(EXECUTABLE, "bench", "serve", "--backend", "vllm", "--host", _HOST, "--port", str(port)),
        *("--model", str(path), "--served-model-name", _SERVED, "--tokenizer", str(path)),
        *("--dataset-name", "random", "--random-input-len", str(requests.isl)),
        *("--random-output-len", str(requests.osl), "--random-range-ratio", "0", "--ignore-eos"),
        *("--num-prompts", str(requests.num_requests), "--max-concurrency", str(requests.concurrency)),
        *("--num-warmups", str(requests.num_warmup_requests), "--seed", str(seed)),
        *("--ready-check-timeout-sec", str(int(requests.timeout_s)), "--disable-tqdm"),
        *("--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "99"),
        *("--save-result", "--result-dir", str(report.parent), "--result-filename", report.name),
    ]


def read_report(report: Mapping[str, object], requests: Requests) -> ServingRun:
    """A report as numbers in SI units.

    A VerificationError when a key is missing, a value is no positive number, or requests or tokens differ
    from what was asked for.
    """
    _verify_work(report, requests)

    def number(name: str) -> float:
        return positive_number(report, name, of=_REPORT, hint=_HINT)

    latency_s, output_rate = number("mean_e2el_ms") / _MS, number("output_throughput")
    return ServingRun(
        duration_s=number("duration"),
        requests_per_s=number("request_throughput"),
        output_tokens_per_s=output_rate,
        total_tokens_per_s=number("total_token_throughput"),
        # The report has no mean over requests of this; of equal requests its inverse is their mean latency.
        output_tokens_per_s_per_user=requests.osl / latency_s,
        output_tokens_per_s_per_gpu=output_rate,
        latency_s=latency_s,
        latency_p99_s=no_tail(requests.num_requests) or number("p99_e2el_ms") / _MS,
        ttft_s=number("mean_ttft_ms") / _MS,
        tpot_s=number("mean_tpot_ms") / _MS if requests.osl > 1 else Absent(absent="osl = 1"),
    )


def _verify_work(report: Mapping[str, object], requests: Requests) -> None:
    """Refuse other work than was asked for: all requests answered, every one with all its tokens."""
    count, asked = requests.num_requests, requests.num_requests * requests.isl
    expected = {"completed": count, "total_output_tokens": count * requests.osl}
    found = {name: report.get(name) for name in expected}
    read = report.get("total_input_tokens")
    is_as_long = isinstance(read, int) and abs(read - asked) <= _PROMPT_TOLERANCE * asked
    if found != expected or not is_as_long:
        raise VerificationError(
            f"{CLIENT} did not do the requested work",
            expected={**expected, "total_input_tokens": asked},
            found={**found, "total_input_tokens": read},
            hint="see the server's messages: requests that fail or end early are no measurement",
        )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        return int(found.getsockname()[1])
