"""One training from numbers alone: batch and steps, FLOPs per token, memory per GPU. No torch.

FLOPs: a backward pass costs two forward passes, so distillation costs one teacher forward and three
student forwards per token; recomputed activations cost one more. Memory: the tensors that
mixed-precision AdamW keeps.

Legend: P parameters, H hidden, I intermediate, L layers, N query heads, K key/value heads,
D head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from compressor.core.errors import UsageError
from compressor.models.dims import (
    Dims,
    flops_per_token,
    num_embedding_parameters,
    num_non_embedding_parameters,
    num_parameters,
)
from compressor.recipe.recipe import Distill

PUBLISHED_BATCH_SIZE = 1152
PUBLISHED_WARMUP_STEPS = 40
PUBLISHED_CORRECTION_WARMUP_STEPS = 120
SHORTEST_PUBLISHED_RUN_STEPS = 400

_WEIGHT_BYTES = _GRADIENT_BYTES = 4
_MOMENTS_BYTES = 8
_BF16 = 2
_FP32 = 4
# A chunk of the loss: 3 * 2^23 logits, in float32, of which six copies live at once (both models'
# logits, both log-probabilities, their product, the gradient).
_CHUNK_VALUES = 3 << 23
_CHUNK_COPIES = 6
# Layers whose weights are whole at the same time: the one that computes and the next.
_GATHERED_LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a training's token budget is spent; plan and run both take it from here.

    Only the micro-batch depends on the number of processes.

    Attributes:
        steps: Optimizer steps.
        batch_size: Windows per step, over all processes.
        micro_batch_size: Windows per forward pass and process, at most.
        warmup_steps: Steps of linear warm-up.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    warmup_steps: int


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training of a run.

    Attributes:
        name: The stage that trains: prune, correct, distill or recover; or scratch.
        teacher: The model that is asked for logits, if there is one in memory.
        context_length: Tokens per window.
        trains_teacher: Whether the teacher is trained on the same batches.
        sharded: Whether weights, gradients, moments and teacher are cut over the GPUs.
        recomputes: Whether activations are recomputed.
        single_process: Whether it runs on one GPU, however many there are.
    """

    name: str
    student: Dims
    teacher: Dims | None
    schedule: Schedule
    context_length: int
    trains_teacher: bool = False
    sharded: bool = True
    recomputes: bool = False
    single_process: bool = False

    @property
    def tokens(self) -> int:
        """Tokens seen."""
        return self.schedule.steps * self.schedule.batch_size * self.context_length

    @property
    def flops_per_token(self) -> int:
        """FLOPs of one trained token, those of recomputed activations included."""
        return training_flops_per_token(
            self.student,
            self.teacher,
            self.context_length,
            trains_teacher=self.trains_teacher,
            recomputes=self.recomputes,
        )


def training_schedule(config: Distill, processes: int) -> Schedule:
    """The steps and batches that a token budget buys, shared by so many processes.

    The published batch is 1152 windows (arXiv 2408.11796) and the shortest published run 400 steps
    (arXiv 2407.14679); a smaller budget keeps the 400 steps and takes smaller batches.

    Raises:
        UsageError: when the budget does not fill one window.
    """
    if config.tokens < config.context_length:
        raise UsageError(
            "the token budget does not fill one training sequence",
            where="--tokens",
            expected=f"at least {config.context_length}",
            found=config.tokens,
            hint="raise --tokens, or lower --context-length",
        )
    num_windows = config.tokens // config.context_length
    wanted = config.batch_size or min(PUBLISHED_BATCH_SIZE, num_windows // SHORTEST_PUBLISHED_RUN_STEPS)
    batch_size = max(1, min(wanted, num_windows))
    steps = num_windows // batch_size
    return Schedule(
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=math.gcd(ceil_divide(batch_size, processes), config.micro_batch_size),
        warmup_steps=warmup_steps(config, steps),
    )


def warmup_steps(config: Distill, steps: int) -> int:
    """Steps of linear warm-up of a training of so many steps."""
    if config.warmup_ratio is not None:
        return round(config.warmup_ratio * steps)
    return min(PUBLISHED_WARMUP_STEPS, steps // 10) if config.warmup_steps is None else config.warmup_steps


def correction_schedule(config: Distill, processes: int) -> Schedule:
    """The steps of a teacher correction that comes first, in distillation's batches.

    Raises:
        UsageError: as `training_schedule`, for the correction's budget or distillation's.
    """
    correction = config.correction
    batch_size = training_schedule(config, processes).batch_size
    own = {"tokens": correction.tokens or config.tokens, "batch_size": batch_size}
    schedule = training_schedule(config.model_copy(update=own), processes)
    published = min(PUBLISHED_CORRECTION_WARMUP_STEPS, schedule.steps // 10)
    warmup = published if correction.warmup_steps is None else correction.warmup_steps
    return replace(schedule, warmup_steps=warmup)


def training_flops_per_token(
    student: Dims,
    teacher: Dims | None,
    context_length: int,
    *,
    trains_teacher: bool = False,
    recomputes: bool = False,
) -> int:
    """FLOPs of one trained token: forward, and twice that for backward, per trained model.

    The teacher is the one in memory, if there is one. Attention is causal, so a token attends to half of
    its window on average.
    """
    context = context_length // 2
    trained = 4 if recomputes else 3
    flops = trained * flops_per_token(student, context)
    if teacher is not None:
        flops += (trained if trains_teacher else 1) * flops_per_token(teacher, context)
    return flops


def activation_bytes_per_token(dims: Dims) -> int:
    """Bytes that one decoder layer keeps of a token for its backward pass.

    Sixteen-bit: both norms' inputs and outputs, queries, keys and values before and after rotation
    (values once), attention's output and the MLP's intermediate tensors; in float32 what RMS norms
    compute in it. Attention matrices are never kept (fused kernels).
    """
    family = dims.family
    queries = dims.num_attention_heads * dims.head_dim
    keys = dims.num_key_value_heads * dims.head_dim
    mlp = (4 if family.gated_mlp else 2) * dims.intermediate_size
    sixteen_bit = 4 * dims.hidden_size + 3 * queries + 3 * keys + mlp
    float32 = 0 if family.norm_has_bias else 2 * dims.hidden_size
    return _BF16 * sixteen_bit + _FP32 * float32


def memory_per_gpu(phase: Phase, num_gpus: int, *, recomputes: bool) -> dict[str, int]:
    """Bytes on one GPU, part by part.

    Float32 weights, gradients and AdamW's two moments of what is trained, the teacher in bf16, all
    sharded over the GPUs; the bf16 weights that are whole at one time; activations of one
    micro-batch; the loss's chunk and the gradient of the LM head.
    """
    ways = num_gpus if phase.sharded else 1
    frozen = None if phase.trains_teacher else phase.teacher
    trained = [phase.student, *([phase.teacher] if phase.teacher and phase.trains_teacher else [])]
    parameters = sum(map(num_parameters, trained))
    tokens = phase.schedule.micro_batch_size * phase.context_length
    parts = {
        "weights": ceil_divide(_WEIGHT_BYTES * parameters, ways),
        "gradients": ceil_divide(_GRADIENT_BYTES * parameters, ways),
        "optimizer": ceil_divide(_MOMENTS_BYTES * parameters, ways),
        "teacher": ceil_divide(_BF16 * num_parameters(frozen), ways) if frozen else 0,
        "whole_weights": _whole_weights(trained, frozen, ways),
        "activations": sum(_activations(dims, tokens, recomputes=recomputes) for dims in trained)
        + (_forward_only(frozen, tokens) if frozen else 0),
        "loss": sum(_loss(dims, tokens) for dims in trained),
    }
    return {**parts, "total": sum(parts.values())}


def ceil_divide(number: int, ways: int) -> int:
    """`number` shared out, the largest share."""
    return -(-number // ways)


def _whole_weights(trained: list[Dims], frozen: Dims | None, ways: int) -> int:
    """Bf16 weights that are whole at one time.

    Unsharded, autocast keeps a bf16 copy of everything trained. Sharded, embedding, LM head and two
    layers of each model are gathered, with the gradients of those that are trained.
    """
    if ways == 1:
        return _BF16 * sum(map(num_parameters, trained))
    whole = 2 * sum(_gathered_parameters(dims) for dims in trained)
    return _BF16 * (whole + (_gathered_parameters(frozen) if frozen else 0))


def _gathered_parameters(dims: Dims) -> int:
    layers = min(_GATHERED_LAYERS, dims.num_hidden_layers)
    return (
        num_embedding_parameters(dims) + layers * num_non_embedding_parameters(dims) // dims.num_hidden_layers
    )


def _activations(dims: Dims, tokens: int, *, recomputes: bool) -> int:
    """Of all layers; recomputed, of one layer and every layer's input."""
    layer = tokens * activation_bytes_per_token(dims)
    if recomputes:
        return layer + tokens * _BF16 * dims.hidden_size * dims.num_hidden_layers
    return layer * dims.num_hidden_layers


def _forward_only(dims: Dims, tokens: int) -> int:
    """What one layer without a backward pass holds at its widest: the residual stream and the MLP."""
    return tokens * _BF16 * (2 * dims.hidden_size + 3 * dims.intermediate_size)


def _loss(dims: Dims, tokens: int) -> int:
    """One chunk of logits, and the LM head's gradient in float32."""
    chunk = min(tokens * dims.vocab_size, _CHUNK_VALUES)
    return _FP32 * (_CHUNK_COPIES * chunk + dims.vocab_size * dims.hidden_size)
