"""A stand-in for NVIDIA's trtllm-bench, which needs a GPU and TensorRT-LLM: not NVIDIA's.

It reads the data set and the options that it was given and writes a report of the tool's shape. A student is
twice as fast as a teacher, FP8 half as fast again, and every run differs from the others. What goes wrong,
when a test asks for it, goes wrong in every run whose model or engine has a name in its path; an error about
memory is worded as torch words it (https://github.com/NVIDIA/TensorRT-LLM/issues/8802).
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."

PROGRAM = """\
#!{python} -IS
import json, pathlib, random, sys, time
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
where = option("--engine_dir") if "--engine_dir" in words else option("--model_path")
behaviour = {behaviour!r} if {of!r} in where else "serves"
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(words) + "\\n")
if behaviour == "out of memory":
    print({sentence!r}, file=sys.stderr)
    print("[TRT-LLM] [E] Executor worker died", file=sys.stderr)
    raise SystemExit(1)
if behaviour == "hangs":
    print("[TRT-LLM] [I] WARMING UP...", flush=True)
    time.sleep(600)
lines = [json.loads(line) for line in pathlib.Path(option("--dataset")).read_text().splitlines()]
count, isl = len(lines), len(lines[0]["input_ids"])
osl = lines[0]["output_tokens"] - (1 if behaviour == "answers less" else 0)
rate = 100.0 * int(option("--concurrency")) * random.uniform(0.6, 1.4)
rate *= (1 if "teacher" in where else 2) * (1.5 if "fp8" in where else 1)
total_ms, each_ms = 1000 * count * osl / rate, 1000 * osl * int(option("--concurrency")) / rate
report = dict(
    request_info=dict(num_requests=count, avg_input_length=float(isl), avg_output_length=float(osl)),
    performance=dict(
        total_latency_ms=total_ms, avg_request_latency_ms=each_ms, request_throughput_req_s=rate / osl,
        system_output_throughput_tok_s=rate, system_total_throughput_tok_s=rate * (isl + osl) / osl,
        output_throughput_per_user_tok_s=1000 * osl / each_ms, output_throughput_per_gpu_tok_s=rate,
        request_latency_percentiles_ms=dict(p99=each_ms),
    ),
    streaming_metrics=dict(avg_ttft_ms=each_ms / osl, avg_tpot_ms=each_ms / osl),
)
pathlib.Path(option("--report_json")).write_text(json.dumps(report))
"""


def install(directory: Path, *, behaviour: str = "serves", of: str = "") -> Path:
    """Put the stand-in into `directory`, part of a test's PATH; returns the file of the calls it got.

    It misbehaves in runs whose engine or model has `of` in its path.
    """
    directory.mkdir(exist_ok=True)
    calls = directory / "calls.jsonl"
    text = PROGRAM.format(
        python=sys.executable, behaviour=behaviour, of=of, sentence=OUT_OF_MEMORY, calls=str(calls)
    )
    path = directory / "trtllm-bench"
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return calls
