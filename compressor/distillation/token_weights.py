"""Weights of tokens in a distillation: those with more to learn from count more.

Entropy-based adaptive distillation (EA-KD, arXiv 2311.13621): the loss of a token is multiplied by

    w = (H_t + H_t H_s / log V) / 2

with the entropies H_t of the teacher and H_s of the student in nats, constants to the gradient. log V is the
largest entropy there is. Plain KL is dominated by tokens that the teacher is sure of; here they count little.

Departure: entropies are taken at temperature 1, where stored logits have them; the released code, written
for images of a hundred classes, takes them at 3. Of stored logits the tokens outside the top k count as one.

Legend: T tokens, V vocabulary, B V or fewer.
"""

from __future__ import annotations

import math

import torch

from compressor.distillation.losses import wide


def entropy(logits_TB: torch.Tensor) -> torch.Tensor:
    """Entropy of every token's distribution in nats, `[T]`."""
    logprobs = wide(logits_TB).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def entropy_weights(student_logits_TV: torch.Tensor, teacher_logits_TB: torch.Tensor) -> torch.Tensor:
    """The weight of every token, `[T]`, from 0 to log V."""
    largest = math.log(student_logits_TV.shape[-1])
    teacher = entropy(teacher_logits_TB)
    return teacher * (1 + entropy(student_logits_TV.detach()) / largest) / 2
