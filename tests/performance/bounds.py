"""The bounds of the design, each as a function that measures it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.data.packing import read_windows
from compressor.distillation.chunked import TeacherLogits, chunked_loss
from compressor.distillation.criterion import LogitsCriterion, LossConfig
from compressor.distillation.head import Head
from compressor.distillation.losses import forward_kl
from compressor.distillation.module import DistillationModule
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import read_config
from compressor.models.load import load_model
from compressor.models.tokenizer import load_tokenizer
from compressor.pruning.importance import activation_importance
from compressor.quantization.coverage import quantised_linears
from compressor.runs.artifact import sync_tree
from exporters.tensorrt_llm.checkpoint import write_trtllm_checkpoint
from exporters.tensorrt_llm.config import Parallelism
from tests import assets
from tests.performance import repair_bounds, sparsity_bounds
from tests.performance.checkpoint_memory import checkpoint_bounds
from tests.performance.large_tensors import cut_8b_tensors, write_8b_tensors
from tests.performance.measure import (
    Bound,
    bare_pass,
    counted_memory,
    paired_ratio,
    peak_memory_bytes,
    real_checkpoint,
)

GIB = 1 << 30
LOSS_VOCAB, LOSS_TOKENS, LOSS_HIDDEN = 128_256, 4096, 256


def importance(scratch: Path) -> list[Bound]:
    """Importance of every axis against the same pass without hooks."""
    checkpoint = real_checkpoint(scratch)
    text = assets.fetch(assets.DEFAULT_DIRECTORY).texts["wiki"]
    windows = read_windows(str(text), "train", load_tokenizer(checkpoint), size=2, seq_len=512)
    adapter = ModelAdapter(load_model(checkpoint, dtype="float32", device="cpu"))
    ratio = paired_ratio(lambda: bare_pass(adapter, windows), lambda: activation_importance(adapter, windows))
    return [ratio.bound("importance of all axes : bare forward pass, SmolLM2, CPU time", required=1.10)]


def slicing(scratch: Path) -> list[Bound]:
    """Slicing real 8B tensors (fewer layers) to 4B-Width: memory, and speed against copying."""
    source = write_8b_tensors(scratch / "8b")
    peak = peak_memory_bytes(slice_in_process, source, scratch / "memory")
    copied = scratch / "copied"
    speeds = []
    for _ in range(3):
        speeds.append(_seconds(_copy, source, copied) / _seconds(cut_8b_tensors, source, scratch / "sliced"))
        shutil.rmtree(copied)
        shutil.rmtree(scratch / "sliced")
    shutil.rmtree(source)
    memory = "slicing 8B tensors to 4B-Width: peak memory"
    what = "copying the files : slicing them, wall time, both synced"
    return [
        Bound(what=memory, measured=peak / GIB, required=3, unit="GiB"),
        Bound(what=what, measured=float(np.median(speeds)), required=0.5, unit="x", is_upper=False),
    ]


def slice_in_process(source: Path, out_dir: Path, sender: Any) -> None:
    with counted_memory(sender):
        cut_8b_tensors(source, out_dir)


def distillation(scratch: Path) -> list[Bound]:
    """The distillation step against the same step with full logits, on SmolLM2."""
    checkpoint = real_checkpoint(scratch)
    teacher = load_model(checkpoint, dtype="bfloat16", device="cpu")
    student = load_model(checkpoint, dtype="float32", device="cpu").requires_grad_(requires_grad=True)
    module = DistillationModule(student, teacher)
    ids = torch.randint(0, 49_000, (4, 256), generator=torch.Generator().manual_seed(0))

    def chunked() -> None:
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(ids)["loss"]
        loss.backward()

    def full() -> None:
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                teacher_logits = teacher(ids, use_cache=False).logits
            logits = student(ids, use_cache=False).logits
            loss = forward_kl(logits.flatten(0, 1), teacher_logits.flatten(0, 1)).mean()
        loss.backward()

    ratio = paired_ratio(chunked, full)
    peak = peak_memory_bytes(loss_in_process)
    return [
        ratio.bound(
            "distillation step: tokens/s, ours : full logits, CPU time", required=0.9, is_upper=False
        ),
        Bound(
            what=f"chunked loss, vocabulary {LOSS_VOCAB:,} x {LOSS_TOKENS} tokens: own memory",
            measured=peak / GIB,
            required=1,
            unit="GiB",
        ),
    ]


def loss_in_process(sender: Any) -> None:
    """Forward and backward of the chunked loss; head gradients and inputs exist before counting."""
    student = torch.randn(LOSS_TOKENS, LOSS_HIDDEN, requires_grad=True)
    head = torch.randn(LOSS_VOCAB, LOSS_HIDDEN, requires_grad=True)
    teacher, teacher_head = torch.randn(LOSS_TOKENS, LOSS_HIDDEN), torch.randn(LOSS_VOCAB, LOSS_HIDDEN)
    student.grad, head.grad = torch.ones_like(student), torch.ones_like(head)
    with counted_memory(sender):
        reference = TeacherLogits(hidden=teacher, head=Head(weight=teacher_head))
        labels = torch.zeros(LOSS_TOKENS, dtype=torch.int64)
        criterion = LogitsCriterion(config=LossConfig(), labels=labels, teacher=reference)
        chunked_loss(student, Head(weight=head), criterion, torch.arange(LOSS_TOKENS))[0].backward()


def start_up(scratch: Path) -> list[Bound]:
    """`--help` and `plan` as processes: the fastest of five, since only noise adds."""
    program = "import sys; from compressor.cli.main import invoke; sys.exit(invoke(sys.argv[1:]))"
    imports = _fastest("import click, rich.console, rich.progress")
    shown = _fastest(program, "--help")
    planned = _fastest(program, "plan", "llama3.1-8b", "--target", "4b", "--json")
    return [
        Bound(what="--help, wall time", measured=shown, required=max(0.5, 3 * imports), unit="s"),
        Bound(what="plan llama3.1-8b --target 4b, wall time", measured=planned, required=2, unit="s"),
    ]


def trtllm_checkpoint(scratch: Path) -> list[Bound]:
    """Writing an FP8 TensorRT-LLM checkpoint of real 8B tensors (fewer layers): memory."""
    source = write_8b_tensors(scratch / "8b")
    peak = peak_memory_bytes(write_trtllm_in_process, source, scratch / "checkpoint") / GIB
    what = "writing an FP8 TensorRT-LLM checkpoint of 8B tensors: peak memory"
    return [Bound(what=what, measured=peak, required=4, unit="GiB")]


def write_trtllm_in_process(source: Path, out_dir: Path, sender: Any) -> None:
    names = quantised_linears(read_config(source))
    amax = {f"{name}.{kind}_amax": torch.tensor(4.0) for name in names for kind in ("weight", "input")}
    out_dir.mkdir()
    with counted_memory(sender):
        write_trtllm_checkpoint(
            source, out_dir, dtype=torch.bfloat16, parallelism=Parallelism(tp_size=2), amax=amax
        )


BOUNDS = (
    start_up,
    importance,
    distillation,
    slicing,
    trtllm_checkpoint,
    sparsity_bounds.one_shot,
    sparsity_bounds.moving_masks,
    repair_bounds.passes,
    repair_bounds.large_layer,
    checkpoint_bounds,
)


def measure_all() -> list[Bound]:
    found: list[Bound] = []
    for measure in BOUNDS:
        with tempfile.TemporaryDirectory() as scratch:
            for bound in measure(Path(scratch)):
                print(bound.row(), flush=True)
                found.append(bound)
    return found


def _copy(source: Path, out_dir: Path) -> None:
    shutil.copytree(source, out_dir)
    sync_tree(out_dir)


def _seconds(work: Any, *arguments: Any) -> float:
    os.sync()
    start = time.monotonic()
    work(*arguments)
    return time.monotonic() - start


def _fastest(program: str, *arguments: str) -> float:
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - start)
    return min(times)
