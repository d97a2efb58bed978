"""A stand-in for `trtllm-build`: it prints what TensorRT-LLM's prints, and leaves what the test asks for.

It is no engine builder. Its lines are those that the real one's log holds at these points; what a real
build does is tested in `tests/gpu`, where there is a GPU and TensorRT-LLM.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

STATED = "[TensorRT-LLM] TensorRT-LLM version: {version}"
SPARSE_LINES = """\
[TRT] [V] (Sparsity) Found 21 layer(s) eligible to use sparse tactics: transformer/layers/0/attention/qkv
[TRT] [V] (Sparsity) Chose {num_chosen} layer(s) using sparse tactics: transformer/layers/0/attention/qkv
"""

PROGRAM = """\
#!{python}
import json, pathlib, shutil, sys
arguments = sys.argv[1:]
print({stated!r}, flush=True)
if "--help" in arguments:
    print("usage: trtllm-build [-h] [--checkpoint_dir CHECKPOINT_DIR]")
    raise SystemExit(0)
option = lambda name: arguments[arguments.index(name) + 1]
behaviour = {behaviour!r}
print("[TRT-LLM] [I] Compute capability: (9, 0)")
if behaviour == "fails":
    print("[TRT] [E] Error Code 2: OutOfMemory (no further information)")
    print("RuntimeError: Engine building failed, please check the error log.", file=sys.stderr)
    raise SystemExit(1)
if "--weight_sparsity" in arguments:
    print({sparse!r}, end="")
checkpoint, output = pathlib.Path(option("--checkpoint_dir")), pathlib.Path(option("--output_dir"))
config = json.loads((checkpoint / "config.json").read_text())
if behaviour == "other model":
    config["rotary_base"] = 10000.0
if behaviour == "other precision":
    config["quantization"]["quant_algo"] = None
if behaviour != "no config":
    document = {{"version": {version!r}, "pretrained_config": config, "build_config": {{}}}}
    (output / "config.json").write_text(json.dumps(document))
if behaviour == "empty engine":
    (output / "rank0.engine").write_bytes(b"")
elif behaviour != "no engine":
    for rank in range(config["mapping"]["world_size"]):
        shutil.copyfile(checkpoint / f"rank{{rank}}.safetensors", output / f"rank{{rank}}.engine")
print("[TRT-LLM] [I] Total time of building all engines: 00:00:21")
"""


def install(
    directory: Path, *, version: str = "1.2.1", behaviour: str = "builds", num_chosen: int = 14
) -> Path:
    """Put the stand-in into `directory`, which a test then makes its PATH."""
    directory.mkdir(exist_ok=True)
    path = directory / "trtllm-build"
    text = PROGRAM.format(
        python=sys.executable,
        stated=STATED.format(version=version),
        behaviour=behaviour,
        sparse=SPARSE_LINES.format(num_chosen=num_chosen),
        version=version,
    )
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
