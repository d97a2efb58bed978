"""The module that the trainer holds: student and teacher bodies, and the loss inside one forward.

The loss is computed here and nowhere else, so that autocast and sharding of the root module cover
everything the student computes. The teacher is not a submodule: it has no part in the optimizer, the
checkpoints or the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compressor.choices.losses import STATE_LOSSES
from compressor.data.packing import IGNORED
from compressor.distillation.chunked import TeacherLogits, chunked_loss, compute_dtype
from compressor.distillation.criterion import OFF, LogitsCriterion, LossConfig, StoredTop
from compressor.distillation.head import head_of
from compressor.distillation.losses import dynamic_weight
from compressor.distillation.states import EMBEDDING, Body, States, body_states
from compressor.training.probes import probe_logits

PROJECTION_SEED = 0


class DistillationModule(nn.Module):
    """Student with a teacher beside it; `forward` returns the loss of a batch.

    Attributes:
        student: The trained model, with its head.
        projection: Maps the student's states to the teacher's width, shared by all that are compared;
            None where widths agree or no states are compared.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any | None,
        loss: LossConfig | None = None,
        *,
        corrects_teacher: bool = False,
    ) -> None:
        """Put a loss, by default forward KL on logits, between two models.

        Args:
            student: To be trained.
            teacher: A frozen one; None when the loss needs none or its logits come with the batches.
            loss: Which losses.
            corrects_teacher: Train the teacher as well, by cross-entropy on the same batches; its
                parameters must require gradients, and its optimizer is the caller's.

        Raises:
            ValueError: for a loss that needs a teacher in memory, without one.
            UnsupportedError: when an LM head has a bias.
        """
        super().__init__()
        self.student = student
        self.loss = loss or LossConfig()
        self._teacher = (Body(teacher),) if teacher is not None else ()
        self.corrects_teacher = corrects_teacher
        if teacher is None and (self.loss.compares_states or corrects_teacher):
            raise ValueError("losses on hidden states and teacher correction need a teacher in memory")
        head_of(student)
        self.projection = make_projection(student, teacher) if self.loss.compares_states else None

    @property
    def teacher(self) -> Body | None:
        """The teacher, to be sharded by itself."""
        return self._teacher[0] if self._teacher else None

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        num_tokens: torch.Tensor | int | None = None,
        teacher_top_ids: torch.Tensor | None = None,
        teacher_top_logprobs: torch.Tensor | None = None,
        teacher_tail_logprobs: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch of B windows of S tokens.

        Args:
            input_ids: `[B, S]`.
            labels: `[B, S]` next token ids; positions where they are `IGNORED` count nowhere. By default
                the next tokens, none for a window's last.
            position_ids: `[B, S]`; restarting ones keep packed documents apart.
            domain_ids: `[B]`; of no influence on the loss.
            num_tokens: What the sum over tokens is divided by; by default the batch's counted positions.
            teacher_top_ids: `[B, S, K]` stored teacher logits, instead of a teacher in memory.
            teacher_top_logprobs: `[B, S, K]` their log-probabilities.
            teacher_tail_logprobs: `[B, S]` those of all other tokens together; None when there are none.

        Returns:
            `loss`, the scalar to train on; `window_losses` `[B]`, detached sums of the loss on logits;
            `window_tokens` `[B]`, counted positions. Minitron's weight of losses on states is set once
            per call; correction adds the teacher's own cross-entropy to `loss`.
        """
        labels = next_tokens(input_ids) if labels is None else labels
        positions = (labels.flatten() != IGNORED).nonzero().squeeze(1)
        teacher_layers, student_layers = self._layers()
        teacher = self._teacher_states(input_ids, position_ids, teacher_layers)
        student = body_states(self.student, input_ids, position_ids, student_layers)
        head = head_of(self.student)
        reference: TeacherLogits | StoredTop | None = None
        if teacher_top_ids is not None and teacher_top_logprobs is not None:
            reference = StoredTop(
                ids=teacher_top_ids.flatten(0, 1),
                logprobs=teacher_top_logprobs.flatten(0, 1),
                tail_logprobs=None if teacher_tail_logprobs is None else teacher_tail_logprobs.flatten(),
            )
        elif self.teacher is not None and teacher is not None:
            frozen = self.teacher.head().frozen(compute_dtype(head.weight))
            reference = TeacherLogits(hidden=teacher.last.detach().flatten(0, 1), head=frozen)
        if reference is None and self.loss.kl_weight > 0:
            raise ValueError("KL needs a teacher in memory or stored logits in the batch")
        criterion = LogitsCriterion(config=self.loss, labels=labels.flatten(), teacher=reference)
        total, losses = chunked_loss(student.last.flatten(0, 1), head, criterion, positions)
        if self.loss.compares_states and teacher is not None:
            states = self._state_loss(student, teacher, positions)
            total = total + dynamic_weight(total, states) * states
        if self.corrects_teacher and teacher is not None:
            total = total + self._teacher_loss(teacher, labels, positions)
        return {
            "loss": total / (max(1, len(positions)) if num_tokens is None else num_tokens),
            "window_losses": losses.view(labels.shape).sum(1).float(),
            "window_tokens": (labels != IGNORED).sum(1),
        }

    def probe_logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """The student's logits for fixed probes, see `compressor.training.probes`."""
        return probe_logits(self.student, input_ids, position_ids)

    @torch.no_grad()
    def cross_entropy(self, input_ids: torch.Tensor, *, of_teacher: bool) -> tuple[torch.Tensor, int]:
        """One model's summed cross-entropy on windows `[B, S]`, and how many tokens were predicted."""
        labels = next_tokens(input_ids).flatten()
        positions = (labels != IGNORED).nonzero().squeeze(1)
        body = self.teacher if of_teacher else None
        if body is None:
            states, head = body_states(self.student, input_ids, None, ()), head_of(self.student)
        else:
            states, head = body(input_ids), body.head()
        criterion = LogitsCriterion(config=LossConfig(kl_weight=0), labels=labels)
        total, _ = chunked_loss(states.last.flatten(0, 1), head, criterion, positions)
        return total, len(positions)

    def _layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(teacher, student) layers whose outputs are compared, pair by pair, the embeddings last."""
        pairs = self.loss.layer_pairs if self.loss.intermediate != OFF else ()
        if self.loss.embedding != OFF:
            pairs = (*pairs, (EMBEDDING, EMBEDDING))
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)

    def _teacher_states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor | None, layers: tuple[int, ...]
    ) -> States | None:
        if self.teacher is None or not (self.loss.needs_teacher or self.corrects_teacher):
            return None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.corrects_teacher):
            states: States = self.teacher(input_ids, position_ids, layers)
        return states

    def _teacher_loss(self, teacher: States, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The teacher's own cross-entropy, summed over tokens."""
        assert self.teacher is not None
        criterion = LogitsCriterion(config=LossConfig(kl_weight=0), labels=labels.flatten())
        hidden = teacher.last.flatten(0, 1)
        return chunked_loss(hidden, self.teacher.head(), criterion, positions)[0]

    def _state_loss(self, student: States, teacher: States, positions: torch.Tensor) -> torch.Tensor:
        """Losses on states summed over the counted tokens, their mean over what is compared."""
        total = torch.zeros((), device=positions.device)
        pairs = list(zip(*self._layers(), strict=True))
        for teacher_layer, student_layer in pairs:
            kind = self.loss.embedding if student_layer == EMBEDDING else self.loss.intermediate
            ours = student.inner[student_layer].flatten(0, 1)[positions]
            theirs = teacher.inner[teacher_layer].detach().flatten(0, 1)[positions]
            if self.projection is not None:
                ours = self.projection(ours)
            total = total + STATE_LOSSES[kind].load()(ours, theirs).sum()
        return total / len(pairs)


def make_projection(student: Any, teacher: Any) -> nn.Linear | None:
    """One bias-free linear map shared by all compared states (Minitron, section 2.4); None at equal widths.

    It begins random, with a seed of its own, so that equal runs begin equal.
    """
    widths = (student.config.hidden_size, teacher.config.hidden_size)
    if widths[0] == widths[1]:
        return None
    projection = nn.Linear(*widths, bias=False)
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    with torch.no_grad():
        projection.weight.normal_(std=widths[0] ** -0.5, generator=generator)
    return projection.to(next(student.parameters()).device)


def next_tokens(input_ids: torch.Tensor) -> torch.Tensor:
    """Every position's label within its window `[B, S]`; the last has none."""
    labels = input_ids.roll(-1, dims=1)
    labels[:, -1] = IGNORED
    return labels
