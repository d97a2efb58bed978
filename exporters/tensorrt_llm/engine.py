"""Building engines with TensorRT-LLM's `trtllm-build`, as a subprocess.

A build that ends with exit code 0 has been seen to leave nothing: only engine files that are there, with
a config that describes the checkpoint, count as an engine. Paths in commands are relative to the
export's directory, so that equal exports leave equal records.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.core.console import Console
from compressor.core.errors import ResourceError, VerificationError
from compressor.core.resource_errors import as_resource_error, killed_child
from compressor.models.dims import Dims, kv_cache_bytes_per_token, weight_bytes
from compressor.recipe.recipe import TensorRTLLM
from exporters.checks.equality import expect_fields
from exporters.tensorrt_llm.versions import BUILDER, CONTAINER, Builder, find_builder, require_builder
from exporters.verification.record import Engine, PredictedMemory, SparseTactics

CHECKPOINT, ENGINE, DENSE_ENGINE = "checkpoint", "engine", "engine-dense"
SCRIPT_FILE, LOG_FILE = "build-engine.sh", "build.log"
_CONFIG_FILE = "config.json"
_TIMING_CACHE = "timing.cache"
# An engine holds the rank's weights; TensorRT may drop copies, such as a tied LM head.
_SMALLEST_PART_OF_WEIGHTS = 0.25
_GIB = 2**30
_NOTE_LENGTH = 100
_ELIGIBLE = re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics")
_CHOSEN = re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics")
_NUM_LOG_LINES = 12


def build_command(
    checkpoint: Mapping[str, Any], settings: TensorRTLLM, *, output: str = ENGINE, sparsity: bool = False
) -> list[str]:
    """The command that builds a checkpoint's engine, to be run in the export's directory.

    GEMM plugins are dense cuBLASLt and hide the weights from TensorRT: sparse engines, whose weights are 2:4
    sparse and TensorRT may use that, go without. NVIDIA advises the plugin for 16-bit engines and against it
    for FP8. `checkpoint` is its `config.json`, `output` the engine's directory.
    """
    quantization, mapping = checkpoint["quantization"], checkpoint["mapping"]
    is_fp8 = quantization["quant_algo"] == "FP8"
    has_fp8_cache = quantization["kv_cache_quant_algo"] == "FP8"
    options: dict[str, object] = {
        "checkpoint_dir": CHECKPOINT,
        "output_dir": output,
        "max_batch_size": settings.max_batch_size,
        "max_input_len": settings.max_input_len,
        "max_seq_len": settings.max_seq_len or checkpoint["max_position_embeddings"],
        "max_num_tokens": settings.max_num_tokens,
        "kv_cache_type": "paged",
        "workers": min(settings.workers, mapping["world_size"]),
        "gemm_plugin": "disable" if is_fp8 or sparsity else "auto",
        "use_paged_context_fmha": "enable",
        "use_fp8_context_fmha": _switch(is_fp8 and has_fp8_cache),
        "multiple_profiles": _switch(settings.multiple_profiles),
        "log_level": "verbose" if sparsity else "info",
        "input_timing_cache": _TIMING_CACHE,
        "output_timing_cache": _TIMING_CACHE,
    }
    if settings.opt_num_tokens is not None:
        options["opt_num_tokens"] = settings.opt_num_tokens
    if mapping["tp_size"] > 1:
        options["reduce_fusion"] = "enable"
    command = [BUILDER, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    return [*command, "--weight_sparsity"] if sparsity else command


def container_command(command: list[str]) -> str:
    """The same command inside the release container, as a line of a shell in the export's directory."""
    limits = ("--gpus", "all", "--ipc", "host", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864")
    start = shlex.join(["docker", "run", "--rm", *limits])
    return f'{start} -v "$PWD":/export -w /export {shlex.join([CONTAINER, *command])}'


def predicted_memory(dims: Dims, checkpoint: Mapping[str, Any], settings: TensorRTLLM) -> PredictedMemory:
    """Bytes per GPU: weights, and the KV cache of a full batch; activations left out.

    A key/value head that several GPUs share is stored by each of them.
    """
    quantization, mapping = checkpoint["quantization"], checkpoint["mapping"]
    weights = weight_bytes(dims, "fp8" if quantization["quant_algo"] else "bf16")
    copies = max(1, mapping["tp_size"] // dims.num_key_value_heads)
    per_token = copies * kv_cache_bytes_per_token(dims, 1 if quantization["kv_cache_quant_algo"] else 2)
    length = settings.max_seq_len or checkpoint["max_position_embeddings"]
    cache = settings.max_batch_size * length * per_token
    return PredictedMemory(
        weight_bytes_per_gpu=weights // mapping["world_size"],
        full_kv_cache_bytes_per_gpu=cache // mapping["world_size"],
    )


def make_engine(
    out_dir: Path, dims: Dims, settings: TensorRTLLM, console: Console, *, sparsity: bool = False
) -> Engine:
    """Build the engine of `out_dir/checkpoint` where that is possible; else leave how to.

    With 2:4 sparsity a dense twin is built beside it for comparison.

    Raises:
        DependencyError: when an engine is required and no builder is here.
        VerificationError: when the builder fails, or leaves no engine.
    """
    checkpoint = json.loads((out_dir / CHECKPOINT / _CONFIG_FILE).read_text(encoding="utf-8"))
    commands = {ENGINE: build_command(checkpoint, settings, sparsity=sparsity)}
    if sparsity:
        commands[DENSE_ENGINE] = build_command(checkpoint, settings, output=DENSE_ENGINE)
    builder = require_builder() if settings.require_engine else find_builder()
    memory = predicted_memory(dims, checkpoint, settings)
    engine = Engine(
        built=isinstance(builder, Builder),
        commands={name: shlex.join(command) for name, command in commands.items()},
        container=CONTAINER,
        predicted_memory=memory,
    )
    console.info(_memory_line(memory))
    if isinstance(builder, str):
        _write_script(out_dir, commands)
        console.info(f"engine not built: {builder}; {SCRIPT_FILE} builds it in {CONTAINER}")
        return engine.model_copy(update={"reason": builder, "script": SCRIPT_FILE})
    tactics = None
    for name, command in commands.items():
        log = _build(builder, command, out_dir, name, console, num_ranks=checkpoint["mapping"]["world_size"])
        _check_engine(out_dir, name, checkpoint)
        if sparsity and name == ENGINE:
            tactics = sparse_tactics(log)
            if not tactics.num_chosen:
                console.warn(f"the 2:4 engine is {tactics.engine}")
    return engine.model_copy(update={"tensorrt_llm": builder.version, "sparsity": tactics})


def sparse_tactics(log: str) -> SparseTactics:
    """Layers eligible for and using sparse tactics, over all ranks of a log."""
    eligible, chosen = ([int(count) for count in pattern.findall(log)] for pattern in (_ELIGIBLE, _CHOSEN))
    num_chosen = sum(chosen) if chosen else None
    verdict = "unknown: the log does not say"
    if num_chosen is not None:
        verdict = "sparse" if num_chosen else "dense: no sparse tactic was chosen"
    num_eligible = sum(eligible) if eligible else None
    return SparseTactics(num_eligible=num_eligible, num_chosen=num_chosen, engine=verdict)


def last_lines(log: str) -> str:
    """The end of a log; progress bars count as lines of their own."""
    lines = [line for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-_NUM_LOG_LINES:])


def _memory_line(predicted: PredictedMemory) -> str:
    weights = predicted.weight_bytes_per_gpu / _GIB
    cache = predicted.full_kv_cache_bytes_per_gpu / _GIB
    return f"engine: {weights:.2f} GiB of weights per GPU, {cache:.2f} GiB of KV cache for a full batch"


def _build(
    builder: Builder, command: list[str], out_dir: Path, name: str, console: Console, *, num_ranks: int
) -> str:
    """Run the builder in `out_dir`, its last line always in sight; returns its log, which stays beside it."""
    shutil.rmtree(out_dir / name, ignore_errors=True)
    (out_dir / name).mkdir()
    lines = []
    console.info(f"building {name} with TensorRT-LLM {builder.version}")
    with (
        console.progress(f"building {name}", num_ranks) as tick,
        (out_dir / name / LOG_FILE).open("w", encoding="utf-8") as log,
        subprocess.Popen(  # noqa: S603 - an executable found on PATH, arguments as a list
            [builder.path, *command[1:]],
            cwd=out_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line)
            tick(line.strip()[:_NOTE_LENGTH], done=len(list((out_dir / name).glob("rank*.engine"))))
            console.detail(f"  {BUILDER}: {line.rstrip()}")
    text = "".join(lines)
    if process.returncode:
        hint = f"the whole log: {out_dir / name / LOG_FILE}"
        raise builder_failure(BUILDER, name, process.returncode, text, hint=hint)
    return text


def builder_failure(
    builder: str, name: str, returncode: int, log: str, *, hint: str
) -> ResourceError | VerificationError:
    """Why a builder of engines did not end well: memory, or the last lines of its log."""
    if resource := as_resource_error(RuntimeError(log)) or killed_child(builder, returncode):
        return resource
    return VerificationError(
        "the engine builder failed",
        where=f"{name}: exit code {returncode}",
        found=last_lines(log),
        hint=hint,
    )


def _check_engine(out_dir: Path, name: str, checkpoint: Mapping[str, Any]) -> None:
    """Believe an engine only when its files are there, describe this checkpoint and can hold its weights."""
    directory = out_dir / name
    file = directory / _CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        described = _described(config["pretrained_config"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise VerificationError(
            "the engine builder succeeded but left no readable config",
            where=f"{name}/{_CONFIG_FILE}",
            found=error,
        ) from error
    expect_fields("the engine is of another model", _described(checkpoint), described, where=f"{name}: ")
    for rank in range(checkpoint["mapping"]["world_size"]):
        engine = directory / f"rank{rank}.engine"
        weights = (out_dir / CHECKPOINT / f"rank{rank}.safetensors").stat().st_size
        size = engine.stat().st_size if engine.is_file() else 0
        if size < _SMALLEST_PART_OF_WEIGHTS * weights:
            raise VerificationError(
                "the engine builder succeeded but left no engine",
                where=f"{name}/{engine.name}",
                expected=f"at least {_SMALLEST_PART_OF_WEIGHTS:.0%} of the rank's {weights:,} bytes",
                found=f"{size:,} bytes",
            )


_DESCRIBED = (
    *("architecture", "dtype", "head_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size", "rotary_base", "rotary_scaling"),
)
_QUANTISATION = ("quant_algo", "kv_cache_quant_algo")


def _described(config: Mapping[str, Any]) -> dict[str, object]:
    """The fields that tell a model from another, of a checkpoint's or an engine's config."""
    quantization = config["quantization"]
    return {
        **{field: config.get(field) for field in _DESCRIBED},
        **{field: quantization.get(field) for field in _QUANTISATION},
    }


def _write_script(out_dir: Path, commands: dict[str, list[str]]) -> None:
    """What to run where a GPU and the container are."""
    lines = [
        "#!/bin/sh",
        "# Builds the engine in the release container; needs a GPU.",
        "set -eu",
        'cd "$(dirname "$0")"',
    ]
    lines += [container_command(command) for command in commands.values()]
    (out_dir / SCRIPT_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _switch(on: bool) -> str:  # noqa: FBT001
    return "enable" if on else "disable"
