"""Bounds of sparsification: memory and time of one-shot SparseGPT, and the step with moving masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compressor.core.console import Console
from compressor.data.packing import read_windows
from compressor.data.tokenise import TokenArray
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import read_config
from compressor.models.dims import Dims, dims_of_config, num_parameters
from compressor.models.load import load_model
from compressor.models.sparse.layers import SparseLinear, install_sparse_layers_
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import TWO_OF_FOUR
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.recipe import Calibration, Sparsify
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext
from compressor.sparsity.adaptive import AnnealedAdamW, MovingMasks
from compressor.sparsity.requirements import covered_weights
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig
from tests import assets
from tests.performance.measure import (
    Bound,
    bare_pass,
    counted_memory,
    paired_ratio,
    peak_memory_bytes,
    real_checkpoint,
)

MIB = 1 << 20
NUM_WINDOWS, WINDOW = 16, 512
MASK_INTERVAL = 10
STEP_SHAPE = (4, 256)
LEARNING_RATE = 1e-5
MAX_TIMES_A_FORWARD_PASS = 10


def one_shot(scratch: Path) -> list[Bound]:
    """SparseGPT on SmolLM2: one layer and its statistics in memory; time against the bare pass."""
    checkpoint, text = real_checkpoint(scratch), assets.fetch(assets.DEFAULT_DIRECTORY).texts["wiki"]
    dims = dims_of_config(read_config(checkpoint))
    peak = peak_memory_bytes(one_shot_in_process, checkpoint, text, scratch / "memory")
    adapter = ModelAdapter(load_model(checkpoint, dtype="bfloat16", device="cpu"))
    windows, numbers = _windows(checkpoint, text), iter(range(1000))
    ratio = paired_ratio(
        lambda: bare_pass(adapter, windows),
        lambda: _sparsify(checkpoint, text, scratch / f"made-{next(numbers)}"),
        num_pairs=2,
    )
    return [
        Bound(
            what="one-shot SparseGPT, SmolLM2: own memory, one layer + statistics",
            measured=peak / MIB,
            required=layer_and_statistics_bytes(dims) / MIB,
            unit="MiB",
        ),
        ratio.bound(
            f"one-shot SparseGPT : bare forward pass, {NUM_WINDOWS * WINDOW} tokens, CPU time",
            required=MAX_TIMES_A_FORWARD_PASS,
        ),
    ]


def layer_and_statistics_bytes(dims: Dims) -> int:
    """One layer's weights and outcome in float32, its Gram matrices, one window, and the factorisation.

    That is of the widest Gram matrix, in float64: Hessian, dampened copy, factor, inverse.
    """
    embedding = dims.vocab_size * dims.hidden_size
    head = 0 if dims.tie_word_embeddings else embedding
    layer = (num_parameters(dims) - embedding - head) // dims.num_hidden_layers
    widest = max(dims.hidden_size, dims.intermediate_size)
    attention_width = dims.num_attention_heads * dims.head_dim
    grams = 4 * (2 * dims.hidden_size**2 + attention_width**2 + dims.intermediate_size**2)
    window = (
        4 * WINDOW * (4 * dims.intermediate_size + 8 * dims.hidden_size + dims.num_attention_heads * WINDOW)
    )
    return 2 * 4 * layer + grams + 4 * 8 * widest**2 + window


def one_shot_in_process(checkpoint: Path, text: Path, out_dir: Path, sender: Any) -> None:
    """Sparsify in this (fresh) process and send its peak memory; libraries and tokenizer come first."""
    import accelerate
    import transformers

    assert accelerate.__version__
    assert transformers.AutoModelForCausalLM
    _windows(checkpoint, text)
    with counted_memory(sender):
        _sparsify(checkpoint, text, out_dir)


def _sparsify(checkpoint: Path, text: Path, out_dir: Path) -> None:
    out_dir.mkdir()
    config = SparsifyStageConfig(
        sparsify=Sparsify(pattern="2:4"),
        calibration=Calibration(data=str(text), size=NUM_WINDOWS, seq_len=WINDOW),
    )
    source = ModelArtifact(
        path=checkpoint, stage="source", fingerprint="-", lineage=("source",), num_parameters=0
    )
    context = StageContext(console=Console(), seed=0, device="cpu", dtype="bfloat16")
    SPARSIFY.run(config, source, out_dir, context)


def _windows(checkpoint: Path, text: Path) -> TokenArray:
    return read_windows(str(text), "train", load_tokenizer(checkpoint), size=NUM_WINDOWS, seq_len=WINDOW)


def moving_masks(scratch: Path) -> list[Bound]:
    """A whole training step, optimizer included, with moving masks against the dense one.

    A selection every ten steps costs, per step, the selection of a tenth of the layers; the candidate
    does that, so that each of its steps costs the same.
    """
    checkpoint = real_checkpoint(scratch)
    dims = dims_of_config(read_config(checkpoint))
    teacher = load_model(checkpoint, dtype="bfloat16", device="cpu")
    ids = torch.randint(0, 49_000, STEP_SHAPE, generator=torch.Generator().manual_seed(0))
    students = [load_model(checkpoint, dtype="float32", device="cpu") for _ in range(2)]
    for student in students:
        student.requires_grad_(requires_grad=True)
    dense, sparse = (
        DistillationModule(student, teacher, LossConfig(temperature=2.0, kl_weight=0.67))
        for student in students
    )
    masks = {name: keep_mask(sparse.student.get_parameter(name).abs()) for name in covered_weights(dims, ())}
    layers = install_sparse_layers_(sparse.student, masks=masks, straight_through=True)
    names = list(layers)
    tenths = [
        _moving({name: layers[name] for name in names[part::MASK_INTERVAL]}) for part in range(MASK_INTERVAL)
    ]
    own = {id(layer.weight) for layer in layers.values()}
    others = [parameter for parameter in sparse.parameters() if id(parameter) not in own]
    annealed = AnnealedAdamW(others, list(layers.values()), lr=LEARNING_RATE, mask_decay=1e-4, ramp_steps=1)
    adamw = torch.optim.AdamW(dense.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    steps = iter(range(1000))

    def step(module: DistillationModule, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(ids)["loss"]
        loss.backward()
        optimizer.step()

    def moving() -> None:
        step(sparse, annealed)
        tenths[next(steps) % MASK_INTERVAL].after_step(1)

    ratio = paired_ratio(lambda: step(dense, adamw), moving)
    return [ratio.bound("step with moving 2:4 masks : dense distillation step, CPU time", required=1.10)]


def _moving(layers: dict[str, SparseLinear]) -> MovingMasks:
    return MovingMasks(layers, pattern=TWO_OF_FOUR, interval=1, mask_decay=0.0, ramp_steps=1)
