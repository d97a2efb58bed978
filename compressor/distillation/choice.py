"""From the recipe to the losses of a run, and the sentence that says which rule chose them.

Minitron (arXiv 2407.14679, section 2.4 and table 17): losses on hidden states help only after large
depth cuts, and there the layer two before the last of each does best (29 of 0-31 with 13 of 0-15),
beside the embeddings, by cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.choices.losses import STATE_LOSSES
from compressor.core.errors import UsageError
from compressor.distillation.criterion import OFF, LossConfig
from compressor.distillation.losses import SMALLEST_SAFE_TOP_K
from compressor.distillation.requirements import require_stored_temperature
from compressor.recipe.recipe import Distill

LAYERS_BEFORE_LAST = 2
# "Large": Minitron's depth-pruned models lost half of the layers, its width-pruned at most a tenth.
LARGE_DEPTH_CUT = (1, 3)


@dataclass(frozen=True, kw_only=True)
class LossChoice:
    """The losses of a run.

    Attributes:
        loss: What the module computes.
        rule: Why states are compared, or are not; one sentence for the report.
        warnings: What the user should know of this choice.
    """

    loss: LossConfig
    rule: str
    warnings: tuple[str, ...] = ()


def choose_losses(
    config: Distill, *, num_teacher_layers: int, num_student_layers: int, has_stored_logits: bool = False
) -> LossChoice:
    """Resolve the recipe's `auto` fields; with stored logits, the teacher's come with the batches.

    Raises:
        UsageError: for layer pairs out of range, or a loss that stored logits cannot give.
    """
    may_compare = config.kl_weight > 0 and not has_stored_logits
    cuts_deep = is_large_depth_cut(num_teacher_layers, num_student_layers)
    automatic = "cosine" if cuts_deep and may_compare else OFF
    intermediate = automatic if config.hidden_state_loss == "auto" else config.hidden_state_loss
    embedding = intermediate if config.embedding_loss == "auto" else config.embedding_loss
    pairs: tuple[tuple[int, int], ...] = ()
    if intermediate != OFF:
        pairs = config.layer_pairs or (default_pair(num_teacher_layers, num_student_layers),)
        _check_pairs(pairs, num_teacher_layers, num_student_layers)
    elif config.layer_pairs:
        raise UsageError(
            "layers are paired, but no loss compares hidden states",
            where="distill.layer_pairs",
            expected=f"distill.hidden_state_loss {' or '.join(STATE_LOSSES)}",
            hint="set distill.hidden_state_loss, or leave distill.layer_pairs out",
        )
    loss = LossConfig(
        loss=config.loss,
        kl_weight=config.kl_weight,
        temperature=config.temperature,
        top_k=config.top_k,
        top_k_tail=config.top_k_tail,
        kl_weighting=config.kl_weighting,
        intermediate=intermediate,
        embedding=embedding,
        layer_pairs=pairs,
    )
    if has_stored_logits:
        _require_stored(loss)
    layers = f"the student keeps {num_student_layers} of {num_teacher_layers} layers"
    return LossChoice(loss=loss, rule=_rule(config, loss, layers, may_compare), warnings=_warnings(loss))


def describe(loss: LossConfig) -> str:
    """The losses in words, for the report."""
    parts: list[str] = []
    if loss.kl_weight > 0:
        over = "logits" if loss.top_k is None else f"the teacher's top {loss.top_k} tokens"
        if loss.top_k is not None and loss.top_k_tail == "bucket":
            over = f"{over} and the sum of all others"
        if loss.kl_weighting != "uniform":
            over = f"{over}, tokens weighted by {loss.kl_weighting}"
        weight = "" if loss.kl_weight == 1 else f"{loss.kl_weight:g} "
        parts.append(f"{weight}{loss.divergence.title} on {over}")
    if loss.kl_weight < 1:
        weight = "" if loss.kl_weight == 0 else f"{1 - loss.kl_weight:g} "
        parts.append(f"{weight}cross-entropy")
    if loss.intermediate != OFF:
        pairs = ", ".join(f"{teacher}:{student}" for teacher, student in loss.layer_pairs)
        parts.append(f"{loss.intermediate} on hidden states (teacher:student {pairs})")
    if loss.embedding != OFF:
        parts.append(f"{loss.embedding} on embeddings")
    return f"{' + '.join(parts)}, mean over tokens"


def _rule(config: Distill, loss: LossConfig, layers: str, may_compare: bool) -> str:  # noqa: FBT001 - private
    if config.hidden_state_loss != "auto":
        return "the recipe chooses the losses on states"
    if not may_compare:
        rule = "no losses on hidden states: they need KL and a teacher in memory"
    elif loss.intermediate == OFF:
        rule = f"no losses on hidden states: {layers}, less than a third is cut"
    else:
        rule = f"losses on hidden states as well: {layers}, at least a third is cut"
    return rule if config.embedding_loss == "auto" else f"{rule}; the recipe chooses the loss on embeddings"


def _warnings(loss: LossConfig) -> tuple[str, ...]:
    if loss.kl_weight == 0 or loss.top_k is None or loss.top_k_tail == "bucket":
        return ()
    if loss.top_k >= SMALLEST_SAFE_TOP_K:
        return ()
    return (f"KL over {loss.top_k} tokens: fewer than {SMALLEST_SAFE_TOP_K} are known to do harm",)


def _require_stored(loss: LossConfig) -> None:
    """Refuse what cannot be computed from top-k tokens and one bucket for all others."""
    if loss.compares_states:
        raise UsageError(
            "losses on hidden states and embeddings need a teacher in memory",
            where="distill.teacher_logits",
            expected="distill.hidden_state_loss and distill.embedding_loss off",
            hint="turn both off, or give --teacher instead of --teacher-logits",
        )
    require_stored_temperature(loss)


def default_pair(num_teacher_layers: int, num_student_layers: int) -> tuple[int, int]:
    """(teacher, student) layer two before the last of each, from 0; the first where there are fewer."""
    return (
        max(0, num_teacher_layers - 1 - LAYERS_BEFORE_LAST),
        max(0, num_student_layers - 1 - LAYERS_BEFORE_LAST),
    )


def _check_pairs(
    pairs: tuple[tuple[int, int], ...], num_teacher_layers: int, num_student_layers: int
) -> None:
    """Refuse a layer out of range."""
    for teacher_layer, student_layer in pairs:
        for owner, index, num_layers in (
            ("teacher", teacher_layer, num_teacher_layers),
            ("student", student_layer, num_student_layers),
        ):
            if not 0 <= index < num_layers:
                raise UsageError(
                    f"the {owner} has no such layer",
                    where=f"distill.layer_pairs, pair {teacher_layer}:{student_layer}",
                    expected=f"0 to {num_layers - 1}",
                    found=index,
                    hint="use pairs TEACHER:STUDENT of layers that are there, counted from 0",
                )


def is_large_depth_cut(num_teacher_layers: int, num_student_layers: int) -> bool:
    """Whether at least a third of the layers was cut."""
    numerator, denominator = LARGE_DEPTH_CUT
    return denominator * (num_teacher_layers - num_student_layers) >= numerator * num_teacher_layers
