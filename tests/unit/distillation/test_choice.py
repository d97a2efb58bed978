"""Which losses a recipe means: layer pairs, the rule for deep cuts, and what stored logits can give."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.core.errors import UsageError
from compressor.distillation.choice import LossChoice, choose_losses, describe, is_large_depth_cut
from compressor.recipe.recipe import Distill, load_recipe


def choose(teacher: int = 32, student: int = 16, *, stored: bool = False, **fields: Any) -> LossChoice:
    return choose_losses(
        Distill(**fields), num_teacher_layers=teacher, num_student_layers=student, has_stored_logits=stored
    )


@pytest.mark.parametrize(
    ("teacher", "student", "pair"), [(32, 16, (29, 13)), (30, 15, (27, 12)), (3, 2, (0, 0)), (4, 3, (1, 0))]
)
def test_the_default_pair_is_two_before_the_last(teacher: int, student: int, pair: tuple[int, int]) -> None:
    assert choose(teacher, student, hidden_state_loss="mse").loss.layer_pairs == (pair,)


@pytest.mark.parametrize(
    ("pair", "found"), [((32, 0), "teacher"), ((-1, 0), "teacher"), ((0, 16), "student")]
)
def test_layers_out_of_range_are_refused(pair: tuple[int, int], found: str) -> None:
    with pytest.raises(UsageError, match=f"the {found} has no such layer"):
        choose(hidden_state_loss="cosine", layer_pairs=((1, 1), pair))


@pytest.mark.parametrize(
    ("teacher", "student", "large"), [(32, 16, True), (30, 20, True), (30, 21, False), (32, 32, False)]
)
def test_a_third_of_the_layers_is_a_large_cut(teacher: int, student: int, large: bool) -> None:
    assert is_large_depth_cut(teacher, student) is large
    chosen = choose(teacher, student)
    assert chosen.loss.compares_states is large
    assert f"keeps {student} of {teacher} layers" in chosen.rule
    assert ("at least a third" in chosen.rule) is large


def test_a_deep_cut_turns_on_hidden_states_and_embeddings() -> None:
    loss = choose().loss
    assert (loss.intermediate, loss.embedding, loss.layer_pairs) == ("cosine", "cosine", ((29, 13),))
    assert describe(loss) == (
        "forward KL on logits + cosine on hidden states (teacher:student 29:13) + cosine on embeddings, "
        "mean over tokens"
    )


def test_what_the_recipe_says_goes_before_the_rule() -> None:
    assert not choose(hidden_state_loss="off").loss.compares_states
    chosen = choose(32, 32, hidden_state_loss="mse", layer_pairs=((3, 3), (7, 7)))
    assert (chosen.loss.intermediate, chosen.loss.embedding) == ("mse", "mse")
    assert chosen.loss.layer_pairs == ((3, 3), (7, 7))
    assert "the recipe" in chosen.rule
    only = choose(32, 32, embedding_loss="cosine")
    assert (only.loss.intermediate, only.loss.embedding, only.loss.layer_pairs) == ("off", "cosine", ())
    assert only.rule.startswith("no losses on hidden states: ")
    assert only.rule.endswith("; the recipe chooses the loss on embeddings")


def test_pairs_that_nothing_compares_are_refused() -> None:
    with pytest.raises(UsageError, match="no loss compares hidden states"):
        choose(32, 32, layer_pairs=((3, 3),))


def test_cross_entropy_alone_compares_nothing() -> None:
    chosen = choose(kl_weight=0)
    assert not chosen.loss.needs_teacher
    assert describe(chosen.loss) == "cross-entropy, mean over tokens"


def test_few_tokens_are_warned_of() -> None:
    assert choose(top_k=1000).warnings == ()
    assert choose(top_k=999, top_k_tail="bucket").warnings == ()
    assert "999" in choose(top_k=999).warnings[0]


def test_stored_logits_give_no_states_and_one_temperature() -> None:
    chosen = choose(stored=True)
    assert not chosen.loss.compares_states
    assert "teacher in memory" in chosen.rule
    with pytest.raises(UsageError, match="teacher in memory"):
        choose(stored=True, hidden_state_loss="cosine")
    assert choose(stored=True, loss="reverse-kl").loss.loss == "reverse-kl"
    warm: dict[str, Any] = {"temperature": 2.0}
    for fields in (warm, warm | {"top_k": 1024, "top_k_tail": "bucket"}):
        with pytest.raises(UsageError, match="at temperature 1 only"):
            choose(stored=True, **fields)
    assert choose(stored=True, top_k=1024, **warm).loss.top_k == 1024


def test_every_part_is_described() -> None:
    loss = choose(32, 32, loss="reverse-kl", kl_weight=0.67, top_k=2000).loss
    assert describe(loss) == (
        "0.67 reverse KL on the teacher's top 2000 tokens + 0.33 cross-entropy, mean over tokens"
    )
    loss = choose(32, 32, top_k=2000, top_k_tail="bucket", kl_weighting="entropy").loss
    assert describe(loss) == (
        "forward KL on the teacher's top 2000 tokens and the sum of all others, tokens weighted by entropy, "
        "mean over tokens"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k_tail": "bucket"}, "needs top_k"),
        ({"kl_weighting": "entropy", "kl_weight": 0}, "no effect with kl_weight 0"),
        ({"top_k": 100, "kl_weight": 0}, "top_k 100 has no effect with kl_weight 0"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "both say"),
    ],
)
def test_choices_without_effect_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(None, {"model": "m", **{f"distill.{name}": value for name, value in fields.items()}})


def test_stored_logits_alone_leave_tokens_to_the_bucket() -> None:
    assert Distill(teacher_logits="store", top_k_tail="bucket").top_k is None
