"""One training from numbers alone: batch and steps, FLOPs per token, memory per GPU. No torch.

FLOPs: a backward pass costs two forward passes, so distillation costs one teacher forward and three
student forwards per token; recomputed activations cost one more. Memory: the tensors that
mixed-precision AdamW keeps.

Legend: P parameters, H hidden, I intermediate, L layers, N query heads, K key/value heads,
D head_dim, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.models.dims import (
    Dims,
    flops_per_token,
    num_embedding_parameters,
    num_non_embedding_parameters,
    num_parameters,
)
from compressor.recipe.recipe import Distill

PUBLISHED_BATCH_SIZE = 1152
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
class Phase:
    """One training of a run.

    Attributes:
        name: distill, recover, correction or scratch.
        student: The model that is trained.
        teacher: The model that is asked for logits, if there is one in memory.
        trains_teacher: Whether the teacher is trained on the same batches.
        steps: Optimizer steps.
        batch_size: Windows per step, over all GPUs.
        context_length: Tokens per window.
        micro_batch_size: Windows per forward pass and GPU.
        sharded: Whether weights, gradients, moments and teacher are cut over the GPUs.
        recomputes: Whether activations are recomputed.
    """

    name: str
    student: Dims
    teacher: Dims | None
    steps: int
    batch_size: int
    context_length: int
    micro_batch_size: int = 1
    trains_teacher: bool = False
    sharded: bool = True
    recomputes: bool = False

    @property
    def tokens(self) -> int:
        """Tokens seen."""
        return self.steps * self.batch_size * self.context_length


def batch_and_steps(config: Distill) -> tuple[int, int]:
    """Windows per optimizer step and the number of steps that a budget buys.

    1152 windows (arXiv 2408.11796), fewer where the budget would not make 400 steps (arXiv 2407.14679).
    """
    num_windows = config.tokens // config.context_length
    wanted = config.batch_size or min(PUBLISHED_BATCH_SIZE, num_windows // SHORTEST_PUBLISHED_RUN_STEPS)
    batch_size = max(1, min(wanted, num_windows))
    return batch_size, num_windows // batch_size


def training_flops_per_token(phase: Phase) -> int:
    """FLOPs of one trained token: forward, and twice that for backward, per trained model.

    Attention is causal, so a token attends to half of its window on average.
    """
    context = phase.context_length // 2
    trained = 4 if phase.recomputes else 3
    student = trained * flops_per_token(phase.student, context)
    if phase.teacher is None:
        return student
    return student + (trained if phase.trains_teacher else 1) * flops_per_token(phase.teacher, context)


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
    tokens = phase.micro_batch_size * phase.context_length
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
