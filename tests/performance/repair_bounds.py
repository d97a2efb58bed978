"""Bounds of the repair by least squares: its passes against a bare one, and a layer of 8B's shape."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from compressor.calibration.stream import Stream
from compressor.data.packing import read_windows
from compressor.data.tokenise import TokenArray
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.models.load import load_model
from compressor.models.tokenizer import load_tokenizer
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import PLAN_FILE, make_plan, read_plan
from compressor.pruning.slicing import slice_checkpoint
from compressor.repair import walk as walk_module
from compressor.repair.choice import Repaired
from compressor.repair.walk import Walk
from tests import assets
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
NUM_WINDOWS, WINDOW = 16, 512
MAX_TIMES_A_FORWARD_PASS = 10
SHAPE = {"hidden_size": 432, "intermediate_size": 1024}
MOST_SOLVE_SECONDS = 180
MOST_LAYER_SECONDS = 600


def passes(scratch: Path) -> list[Bound]:
    """Everything but the solves, on SmolLM2, against the bare pass of the same windows; the solves apart."""
    checkpoint, text = real_checkpoint(scratch), assets.fetch(assets.DEFAULT_DIRECTORY).texts["wiki"]
    windows = read_windows(str(text), "train", load_tokenizer(checkpoint), size=NUM_WINDOWS, seq_len=WINDOW)
    dims = dims_of_config(read_config(checkpoint))
    student = scratch / "student"
    student.mkdir()
    plan = make_plan(dims, dims.with_shape(**SHAPE), random_importance(dims, seed=0), importance="random")
    plan.write(student)
    slice_checkpoint(checkpoint, plan, student)
    adapter = ModelAdapter(load_model(checkpoint, dtype="bfloat16", device="cpu"))

    def unsolved() -> None:
        with patch.object(walk_module, "solved", _as_it_was):
            repair(checkpoint, student, windows, scratch)

    ratio = paired_ratio(lambda: bare_pass(adapter, windows), unsolved, num_pairs=2)
    tokens = NUM_WINDOWS * WINDOW
    return [
        ratio.bound(
            f"repair of SmolLM2 without its solves : bare forward pass, {tokens} tokens, CPU time",
            required=MAX_TIMES_A_FORWARD_PASS,
        ),
        Bound(
            what="repair of SmolLM2: its solves, wall time",
            measured=repair(checkpoint, student, windows, scratch).solve_seconds,
            required=MOST_SOLVE_SECONDS,
            unit="s",
        ),
    ]


def _as_it_was(weight: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, Repaired]:
    return weight, Repaired(accepted=False, ridge=1.0, error_ratio=None)


def large_layer(scratch: Path) -> list[Bound]:
    """One layer of Llama-3.1-8B's shape, cut to 4B-Width's: memory and time."""
    source, student = write_8b_tensors(scratch / "8b", num_layers=1), scratch / "4b"
    cut_8b_tensors(source, student)
    dims = dims_of_config(read_config(source))
    started = time.monotonic()
    peak = peak_memory_bytes(repair_in_process, source, student, scratch)
    seconds = time.monotonic() - started
    what = f"repair of one layer of 8B's shape to 4B-Width's, {NUM_WINDOWS * WINDOW} tokens"
    return [
        Bound(what=f"{what}: memory", measured=peak / GIB, required=largest_bytes(dims) / GIB, unit="GiB"),
        Bound(what=f"{what}: wall time", measured=seconds, required=MOST_LAYER_SECONDS, unit="s"),
    ]


def largest_bytes(dims: Dims) -> int:
    """The embedding, or one layer of both models with three Gram matrices and a solve in float64.

    Of the widest linear layer: sums for each use and their total in float32, and in float64 the system, its
    factor, and right-hand side, solution and two products of the outputs.
    """
    width, outputs = dims.intermediate_size, dims.hidden_size
    layer = 2 * 2 * dims.hidden_size * (2 * dims.hidden_size + 3 * width)
    sums = 4 * 4 * width * (width + outputs)
    solve = 8 * (2 * width**2 + 4 * width * outputs)
    return max(2 * 2 * dims.vocab_size * dims.hidden_size, layer + sums + solve)


def repair_in_process(source: Path, student: Path, scratch: Path, sender: Any) -> None:
    """Repair in this (fresh) process and send its peak memory; libraries come first."""
    import accelerate
    import transformers

    assert accelerate.__version__
    assert transformers.AutoModelForCausalLM
    windows = np.random.default_rng(0).integers(0, 100_000, (NUM_WINDOWS, WINDOW)).astype(np.uint32)
    with counted_memory(sender):
        repair(source, student, windows, scratch)


def repair(original: Path, student: Path, windows: TokenArray, scratch: Path) -> Walk:
    """Walk both models to the end."""
    how: dict[str, Any] = {"dtype": torch.bfloat16, "states_dtype": torch.float32, "device": "cpu"}
    with (
        Stream(original, windows, scratch / "original.bin", **how) as theirs,
        Stream(student, windows, scratch / "student.bin", **how) as ours,
    ):
        walk = Walk(
            original=theirs,
            compressed=ours,
            plan=read_plan(student / PLAN_FILE),
            keep_mask=lambda _name: None,
            scratch=scratch,
            on_layer=lambda: None,
        )
        walk.run()
    return walk
