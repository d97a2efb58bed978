"""TensorRT-LLM through its own benchmark, `trtllm-bench`, as a subprocess found on PATH.

A run is a process: it loads an engine or a checkpoint, warms up, serves a data set of ours with a fixed
number of requests in flight, and leaves a JSON report. Definitions are the tool's: total latency from
the first request's start to the last one's end, output throughput with first tokens, time per output
token without them.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.metrics.absent import Absent
from compressor.core.errors import (
    DependencyError,
    ResourceError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from compressor.core.json_files import read_json_mapping

TENSORRT_LLM = "tensorrt-llm"
EXECUTABLE = "trtllm-bench"
ENGINE_FILE = "rank0.engine"
CONFIG_FILE = "config.json"
NUM_WARMUP_REQUESTS = 2
_QUANT_CONFIG_FILE = "hf_quant_config.json"
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "FP8": "fp8"}
_MS = 1000


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a server.

    Attributes:
        isl: Input tokens of every request.
        osl: Output tokens of every request.
        concurrency: Requests in flight.
        num_requests: Requests in all.
    """

    isl: int
    osl: int
    concurrency: int
    num_requests: int

    @property
    def num_warmup_requests(self) -> int:
        """As many as are in flight, and no fewer than the tool's own number."""
        return max(NUM_WARMUP_REQUESTS, self.concurrency)


@dataclass(frozen=True, kw_only=True)
class ServingRun:
    """One report, in SI units; what the tool does not report is absent with a reason."""

    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    output_tokens_per_s_per_user: float
    output_tokens_per_s_per_gpu: float
    latency_s: float
    latency_p99_s: float | Absent
    ttft_s: float | Absent
    tpot_s: float | Absent


class TensorrtLlm:
    """Serves Hugging Face checkpoints, and engines with the checkpoint they were built from."""

    def check(self, path: Path, *, engine: Path | None = None) -> None:
        """Find out cheaply whether `path`, or the engine made from it, can be served at all.

        Raises:
            UsageError: when the directory is not of this runtime's kind.
            DependencyError: when `trtllm-bench` is not on PATH.
        """
        if not (path / CONFIG_FILE).is_file():
            raise UsageError(
                "this directory holds no Hugging Face checkpoint", where=str(path), expected=CONFIG_FILE
            )
        if engine is not None and not (engine / ENGINE_FILE).is_file():
            raise UsageError("this directory holds no engine", where=str(engine), expected=ENGINE_FILE)
        require_executable()

    def serve(
        self, path: Path, load: Load, *, vocab_size: int, seed: int, engine: Path | None = None
    ) -> ServingRun:
        """Run the benchmark once.

        Raises:
            ResourceError: when it fails, with its last line.
            VerificationError: when it did other work than it was asked for.
        """
        self.check(path, engine=engine)
        with tempfile.TemporaryDirectory() as scratch:
            dataset, report = Path(scratch) / "dataset.jsonl", Path(scratch) / "report.json"
            write_dataset(dataset, load, vocab_size=vocab_size, seed=seed)
            done = subprocess.run(  # noqa: S603 - a fixed executable, no shell
                command_line(path, load, dataset=dataset, report=report, engine=engine),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0 or not report.is_file():
                last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
                raise ResourceError(f"{EXECUTABLE} failed", found=f"exit code {done.returncode}: {last}")
            return read_report(read_json_mapping(report, what=f"the report of {EXECUTABLE}"), load)


def require_executable() -> None:
    """Refuse to serve where nothing can.

    Raises:
        DependencyError: when `trtllm-bench` is not on PATH.
    """
    if shutil.which(EXECUTABLE) is None:
        raise DependencyError(
            f"{EXECUTABLE} is not on PATH", hint="run inside the TensorRT-LLM 1.2.1 container"
        )


def command_line(
    path: Path, load: Load, *, dataset: Path, report: Path, engine: Path | None = None
) -> list[str]:
    """The call of `trtllm-bench`: engine backend for an engine, else the PyTorch backend.

    The checkpoint is named in both: the tool takes the tokenizer from it.
    """
    backend = ["--backend", "pytorch"]
    if engine is not None:
        backend = ["--backend", "tensorrt", "--engine_dir", str(engine)]
    return [
        *(EXECUTABLE, "--model", path.name, "--model_path", str(path), "throughput", *backend),
        *("--dataset", str(dataset), "--streaming", "--concurrency", str(load.concurrency)),
        *("--num_requests", str(load.num_requests), "--warmup", str(load.num_warmup_requests)),
        *("--report_json", str(report)),
    ]


def stored_precision(directory: Path) -> str:
    """The precision of a checkpoint or an engine, from its configuration: `bf16`, `fp16`, `fp32`, `fp8`.

    Raises:
        UnsupportedError: for a quantisation or a dtype that has no name here.
    """
    config = read_json_mapping(directory / CONFIG_FILE, what=CONFIG_FILE)
    built = config.get("pretrained_config", {})
    quantisation = built.get("quantization", {}).get("quant_algo")
    if (file := directory / _QUANT_CONFIG_FILE).is_file():
        quantisation = read_json_mapping(file, what=file.name)["quantization"]["quant_algo"]
    found = quantisation or built.get("dtype") or config.get("dtype") or config.get("torch_dtype")
    if found not in _PRECISIONS:
        raise UnsupportedError(
            "this model is stored in a precision without a name here",
            where=str(directory),
            expected=", ".join(_PRECISIONS),
            found=found,
        )
    return _PRECISIONS[found]


def write_dataset(path: Path, load: Load, *, vocab_size: int, seed: int) -> None:
    """Seeded random prompts in the tool's format, equal for every model of a comparison."""
    generator = np.random.default_rng([seed, load.isl, load.osl])
    prompts = generator.integers(0, vocab_size, size=(load.num_requests, load.isl))
    lines = [
        json.dumps({"task_id": index, "input_ids": prompt.tolist(), "output_tokens": load.osl})
        for index, prompt in enumerate(prompts)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_report(report: dict[str, Any], load: Load) -> ServingRun:
    """A report as numbers in SI units.

    Raises:
        VerificationError: when a key is missing, a value is no positive number, or requests or tokens differ
            from the load.
    """
    try:
        _verify_work(report["request_info"], load)
        performance, streaming = report["performance"], report.get("streaming_metrics", {})
        percentiles = performance["request_latency_percentiles_ms"]
        return ServingRun(
            duration_s=_number(performance, "total_latency_ms") / _MS,
            requests_per_s=_number(performance, "request_throughput_req_s"),
            output_tokens_per_s=_number(performance, "system_output_throughput_tok_s"),
            total_tokens_per_s=_number(performance, "system_total_throughput_tok_s"),
            output_tokens_per_s_per_user=_number(performance, "output_throughput_per_user_tok_s"),
            output_tokens_per_s_per_gpu=_number(performance, "output_throughput_per_gpu_tok_s"),
            latency_s=_number(performance, "avg_request_latency_ms") / _MS,
            latency_p99_s=_tail(percentiles, load.num_requests),
            ttft_s=_streamed(streaming, "avg_ttft_ms"),
            tpot_s=_streamed(streaming, "avg_tpot_ms") if load.osl > 1 else Absent("osl = 1"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            f"the report of {EXECUTABLE} lacks a key, or a value has another type", found=error
        ) from error


def _number(part: dict[str, Any], name: str) -> float:
    """One number of a report.

    Raises:
        VerificationError: for one that no server can have reached.
    """
    value = part[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 < value < math.inf):
        raise VerificationError(
            f"the report of {EXECUTABLE} holds no number",
            where=name,
            expected="a positive, finite number",
            found=ascii(value)[:80],
        )
    return float(value)


def _verify_work(info: dict[str, Any], load: Load) -> None:
    found = {name: info[name] for name in ("num_requests", "avg_input_length", "avg_output_length")}
    expected = {
        "num_requests": load.num_requests,
        "avg_input_length": load.isl,
        "avg_output_length": load.osl,
    }
    if found != expected:
        raise VerificationError(f"{EXECUTABLE} did not do the requested work", expected=expected, found=found)


def _tail(percentiles: dict[str, Any], num_requests: int) -> float | Absent:
    needed = 100
    if num_requests < needed:
        return Absent(f"the 99% point needs {needed} requests, there are {num_requests}")
    return _number(percentiles, "p99") / _MS


def _streamed(metrics: dict[str, Any], name: str) -> float | Absent:
    if not isinstance(metrics, dict):
        raise TypeError(f"streaming_metrics is {ascii(metrics)[:80]}")
    return _number(metrics, name) / _MS if name in metrics else Absent("reported only with streaming")
