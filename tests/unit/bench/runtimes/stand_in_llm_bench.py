"""A stand-in for TensorRT-Edge-LLM's llm_bench, which is compiled on a device: not NVIDIA's.

It writes the CSV file that the tool's source (NVIDIA/TensorRT-Edge-LLM, examples/llm) writes: the same names,
columns and digits. A student is twice as fast as a teacher, FP8 half as fast again, and every run differs.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

OUT_OF_MEMORY = "CUDA runtime error in cudaMalloc(&ptr, size): out of memory"

PROGRAM = """\
#!{python} -IS
import json, pathlib, random, sys, time
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(words) + "\\n")
engine, mode, batch = option("--engineDir"), option("--mode"), int(option("--batchSize"))
assert (pathlib.Path(engine) / "llm.engine").is_file()
if {behaviour!r} == "out of memory":
    print({sentence!r}, file=sys.stderr)
    raise SystemExit(1)
if {behaviour!r} == "hangs":
    print("[INFO] Warmup", flush=True)
    time.sleep(600)
is_prompt = mode == "prefill"
length = int(option("--inputLen" if is_prompt else "--pastKVLen"))
osl = 1 if is_prompt else int(option("--osl")) - ({behaviour!r} == "answers less")
tokens = length if is_prompt else osl - 1
ms = (2.0 if is_prompt else 10.0) * tokens * random.uniform(0.9, 1.1)
ms /= (1 if "teacher" in engine else 2) * (1.5 if "fp8" in engine else 1)
ms = {exact!r} or ms
name, column = ("inputlen", "input_len") if is_prompt else ("pastkvlen", "past_kv_len")
if {behaviour!r} != "writes nothing":
    (pathlib.Path(option("--outputDir")) / f"e2e_{{mode}}_{{name}}{{length}}.csv").write_text(
        f"mode,batch_size,osl,e2e_time_ms,per_token_ms,throughput_tps,{{column}}\\n"
        f"{{mode}},{{batch}},{{osl}},{{ms:.4f}},{{ms / tokens:.4f}},{{1000 * tokens / ms:.4f}},{{length}}\\n"
    )
"""


def install(directory: Path, *, behaviour: str = "measures", exact_ms: float = 0.0) -> Path:
    """Put the stand-in into `directory`, part of a test's PATH; returns the file of the calls it got.

    Every call takes `exact_ms`, where that is not 0.
    """
    directory.mkdir(exist_ok=True)
    calls = directory / "calls.jsonl"
    text = PROGRAM.format(
        python=sys.executable, behaviour=behaviour, exact=exact_ms, sentence=OUT_OF_MEMORY, calls=str(calls)
    )
    path = directory / "llm_bench"
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return calls
