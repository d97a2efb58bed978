"""A distillation step, SparseGPT and calibration, of layers with an 8B model's shape."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.design.shape_only import random_model, shape_of, write_random_checkpoint, write_shape
from compressor.calibration.sequential import Gram, LayerVisit, run_sequentially
from compressor.core.hardware import peak_bf16_flops_per_s
from compressor.distillation.module import DistillationModule
from compressor.models.dims import Dims
from compressor.planning.cost import training_phases
from compressor.planning.schedule import memory_per_gpu
from compressor.recipe.recipe import Distill, Recipe
from compressor.sparsity.method import OneShotSettings
from compressor.sparsity.sparsegpt import sparsegpt
from tests.gpu.sparse_gemm import gemm_shapes
from tests.gpu.study.cells import Cell, Setting, peak_bytes, reset_peak, seconds_of
from tests.gpu.study.generation import TOY

TEACHER, STUDENT = "llama3.1-8b", "llama3.1-8b:4b-width"
NUM_LAYERS = 8  # of each: weights, gradients and moments of the whole student need more than one GPU
WINDOWS, CONTEXT = (1, 2, 4), 4096
NUM_RUNS = 5
CALIBRATION_WINDOWS = 16
_TOY_CONTEXT = 16


def distillation_cells(setting: Setting) -> Iterator[Cell]:
    """A step by number of windows, with activations kept and recomputed."""
    for recomputes in (False, True):
        for windows in (1,) if setting.toy else WINDOWS:
            key = f"{windows} x {CONTEXT}{', recomputed' if recomputes else ''}"
            yield Cell(key=key, measure=partial(_step, windows, recomputes, setting))


def _step(windows: int, recomputes: bool, setting: Setting) -> dict[str, Any]:
    """Forward KL to the teacher, backward, and AdamW's update; the plan's memory and FLOPs beside it."""
    context = _TOY_CONTEXT if setting.toy else CONTEXT
    teacher_dims, student_dims = (
        TOY if setting.toy else shape_of(name).with_shape(num_hidden_layers=NUM_LAYERS)
        for name in (TEACHER, STUDENT)
    )
    reset_peak(setting.device)
    teacher = _random(teacher_dims, "bfloat16", setting)
    student = _random(student_dims, "float32", setting).train().requires_grad_(requires_grad=True)
    if recomputes:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = DistillationModule(student, teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=setting.device == "cuda")
    ids = torch.randint(0, student_dims.vocab_size, (windows, context), device=setting.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(setting.device, torch.bfloat16):
            loss = module(ids)["loss"]
        loss.backward()
        optimizer.step()

    seconds = seconds_of(step, setting.device, num_runs=1 if setting.toy else NUM_RUNS)
    tokens_per_s = windows * context / statistics.median(seconds)
    settings = Distill(
        tokens=windows * context,
        context_length=context,
        batch_size=windows,
        activation_checkpointing=recomputes,
    )
    phase = training_phases(Recipe(model=TEACHER, distill=settings), teacher_dims, student_dims, 1)[-1]
    peak = peak_bf16_flops_per_s()
    return {
        "tokens_per_s": tokens_per_s,
        "seconds": seconds,
        "flops_per_token": phase.flops_per_token,
        "utilisation": tokens_per_s * phase.flops_per_token / peak if peak else None,
        "peak_bytes": peak_bytes(setting.device),
        "planned_bytes": memory_per_gpu(phase, 1, recomputes=recomputes)["total"],
    }


def sparsegpt_cells(setting: Setting) -> Iterator[Cell]:
    """A cell for each matrix of a layer."""
    shapes = gemm_shapes(TOY if setting.toy else shape_of(TEACHER))
    for name, shape in shapes.items():
        yield Cell(key=f"{name} {shape[0]}x{shape[1]}", measure=partial(_sparsify, shape, setting))


def _sparsify(shape: tuple[int, int], setting: Setting) -> dict[str, Any]:
    weight = torch.randn(*shape, device=setting.device) / shape[1] ** 0.5
    inputs = Gram(total=torch.zeros(shape[1], shape[1], device=setting.device))
    reset_peak(setting.device)
    inputs.add(torch.randn(2 * shape[1], shape[1], device=setting.device))
    num_runs = 1 if setting.toy else 3
    seconds = seconds_of(
        lambda: sparsegpt(weight, inputs, OneShotSettings()), setting.device, num_runs=num_runs
    )
    return {
        "seconds": statistics.median(seconds),
        "runs": seconds,
        "peak_bytes": peak_bytes(setting.device),
    }


def calibration_cells(setting: Setting) -> Iterator[Cell]:
    """A cell for each model's layer."""
    for name in ("toy",) if setting.toy else (TEACHER, STUDENT):
        yield Cell(key=name, measure=partial(_calibrate, name, setting))


def _calibrate(name: str, setting: Setting) -> dict[str, Any]:
    """One layer over windows of random tokens: forward passes, Gram matrices, and the pass after it."""
    dims = TOY if setting.toy else shape_of(f"{name}{'+' if ':' in name else ':'}layer")
    count, context = (2, _TOY_CONTEXT) if setting.toy else (CALIBRATION_WINDOWS, CONTEXT)
    windows = np.random.default_rng(0).integers(0, dims.vocab_size, (count, context)).astype(np.uint32)
    widths: list[int] = []

    def visit(layer: LayerVisit) -> dict[str, torch.Tensor]:
        widths.extend(gram.total.shape[0] for gram in layer.grams.values())
        return {}

    with tempfile.TemporaryDirectory() as scratch:
        shape, checkpoint = Path(scratch) / "shape", Path(scratch) / "checkpoint"
        write_shape(dims, shape)
        checkpoint.mkdir()
        write_random_checkpoint(shape, checkpoint)
        reset_peak(setting.device)

        def walk() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as states:
                run_sequentially(
                    checkpoint,
                    windows,
                    visit,
                    scratch=Path(states),
                    dtype=torch.bfloat16,
                    device=setting.device,
                )

        seconds = seconds_of(walk, setting.device, num_runs=1 if setting.toy else 3)
    return {
        "tokens_per_s": count * context / statistics.median(seconds),
        "seconds": seconds,
        "num_tokens": count * context,
        "gram_widths": sorted(set(widths)),
        "peak_bytes": peak_bytes(setting.device),
    }


def _random(dims: Dims, dtype: str, setting: Setting) -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        write_shape(dims, Path(scratch))
        return random_model(Path(scratch), dtype=dtype, device=setting.device)
