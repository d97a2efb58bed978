"""A stand-in for vLLM's executable, which needs a GPU: not vLLM.

`vllm serve` waits until it is ended; `vllm bench serve` writes a report with the keys that the source of
vLLM gives it, with figures by a model's name. What goes wrong, when a test asks for it, is said in words
that were published: https://github.com/vllm-project/vllm/issues/20305 and /issues/15182.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

SHARED_GPU = (
    "ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory "
    "utilization (0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
    "processes."
)
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."

PROGRAM = """\
#!{python} -IS
import json, pathlib, random, subprocess, sys, time
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
if words[0] == "serve":
    if {behaviour!r} in ("shared GPU", "out of memory"):
        print("EngineCore failed to start.")
        print({sentence!r})
        print("RuntimeError: Engine core initialization failed. See root cause above.")
        raise SystemExit(1)
    if {behaviour!r} == "starts a worker":
        worker = subprocess.Popen([sys.executable, "-IS", "-c", "import time; time.sleep(600)"])
        pathlib.Path({pids!r}).write_text(str(worker.pid))
    time.sleep(600)
if {behaviour!r} in ("hangs", "shared GPU", "out of memory"):
    print("Waiting for endpoint to become up", flush=True)
    time.sleep(600)
while {behaviour!r} == "starts a worker" and not pathlib.Path({pids!r}).is_file():
    time.sleep(0.02)
count = int(option("--num-prompts"))
isl, osl = int(option("--random-input-len")), int(option("--random-output-len"))
tokens = count * osl - (7 if {behaviour!r} == "answers less" else 0)
speed = 2.0 if "student" in option("--model") else 1.0
speed *= random.uniform(0.5, 1.5) if {behaviour!r} == "is noisy" else 1.0
report = dict(
    duration=10.0 / speed, completed=count, failed=0,
    total_input_tokens=count * isl, total_output_tokens=tokens,
    request_throughput=count / 10 * speed, output_throughput=tokens / 10 * speed,
    total_token_throughput=(count * isl + tokens) / 10 * speed, mean_ttft_ms=20.0 / speed,
    mean_tpot_ms=5.0 / speed, mean_e2el_ms=(20.0 + 5.0 * (osl - 1)) / speed, p99_e2el_ms=60.0 / speed,
)
pathlib.Path(option("--result-dir"), option("--result-filename")).write_text(json.dumps(report))
"""


def install(directory: Path, *, behaviour: str = "serves") -> Path:
    """Put the stand-in into `directory`, a test's PATH; returns where it notes its worker."""
    directory.mkdir(exist_ok=True)
    pids = directory / "worker.pid"
    sentence = {"shared GPU": SHARED_GPU, "out of memory": OUT_OF_MEMORY}.get(behaviour, "")
    text = PROGRAM.format(python=sys.executable, behaviour=behaviour, sentence=sentence, pids=str(pids))
    path = directory / "vllm"
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return pids
