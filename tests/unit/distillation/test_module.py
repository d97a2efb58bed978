"""The module's loss against plain forwards of both models, for every family and loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.core.errors import UnsupportedError
from compressor.data.packing import IGNORED
from compressor.distillation.criterion import LossConfig
from compressor.distillation.head import head_of
from compressor.distillation.losses import cosine_distance, forward_kl
from compressor.distillation.module import DistillationModule, next_tokens
from compressor.distillation.states import EMBEDDING, body_states
from tests.tiny_models import MODEL_TYPES, VOCAB_SIZE, make_model
from tests.unit.distillation.gradients import assert_same_gradients

BATCH, SEQ_LEN = 3, 10


def make_ids() -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(0))


def make_student(model_type: str = "llama", **fields: Any) -> Any:
    return make_model(model_type, seed=1, **fields).requires_grad_(requires_grad=True)


def sparse_labels() -> torch.Tensor:
    labels = next_tokens(make_ids())
    labels[0, :4] = IGNORED
    labels[2] = IGNORED
    return labels


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_loss_and_gradients_equal_those_of_plain_forwards(model_type: str, tied: bool) -> None:
    student = make_student(model_type, hidden_size=32, tie_word_embeddings=tied)
    teacher, ids, labels = make_model(model_type, seed=2), make_ids(), sparse_labels()
    counted = labels != IGNORED
    plain = forward_kl(student(ids).logits[counted], teacher(ids).logits[counted])
    found = DistillationModule(student, teacher)(ids, labels)
    torch.testing.assert_close(found["loss"], plain.mean(), rtol=1e-5, atol=1e-6)
    assert found["window_tokens"].tolist() == [5, 9, 0]
    assert not found["window_losses"].requires_grad
    assert found["window_losses"].tolist() == pytest.approx(
        [plain[:5].sum().item(), plain[5:].sum().item(), 0], rel=1e-4
    )
    assert_same_gradients(found["loss"], plain.mean(), student.parameters())


def test_by_default_labels_are_the_next_tokens() -> None:
    module = DistillationModule(make_student(), None, LossConfig(kl_weight=0))
    logits = module.student(make_ids()).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), make_ids()[:, 1:].flatten())
    found = module(make_ids())
    torch.testing.assert_close(found["loss"], expected)
    assert found["window_tokens"].tolist() == [SEQ_LEN - 1] * BATCH


def test_the_sum_is_divided_by_the_steps_tokens() -> None:
    """Micro-batches with unequal counts add up to the whole batch."""
    module = DistillationModule(make_student(), make_model(seed=2), LossConfig(kl_weight=0.5))
    ids, labels = make_ids(), sparse_labels()
    whole = module(ids, labels)["loss"]
    count = (labels != IGNORED).sum()
    parts = [module(ids[row : row + 1], labels[row : row + 1], num_tokens=count)["loss"] for row in range(3)]
    torch.testing.assert_close(sum(parts), whole)
    assert parts[2] == 0


def test_cross_entropy_alone_runs_no_teacher() -> None:
    teacher = make_model(seed=2)
    teacher.model.forward = None
    ids = make_ids()
    found = DistillationModule(make_student(), teacher, LossConfig(kl_weight=0))(ids)
    alone = DistillationModule(make_student(), None, LossConfig(kl_weight=0))(ids)
    assert found["loss"] == alone["loss"]


def test_what_needs_a_teacher_refuses_to_do_without() -> None:
    with pytest.raises(ValueError, match="teacher in memory"):
        DistillationModule(make_student(), None, LossConfig(embedding="mse"))
    with pytest.raises(ValueError, match="stored logits"):
        DistillationModule(make_student(), None)(make_ids())


def test_isolated_documents_do_not_see_each_other() -> None:
    ids, half = make_ids(), SEQ_LEN // 2
    positions = torch.arange(SEQ_LEN).remainder(half).expand(BATCH, -1)
    labels = next_tokens(ids)
    labels[:, half - 1] = IGNORED
    module = DistillationModule(make_student(), make_model(seed=2))
    packed = module(ids, labels, positions)
    apart = module(torch.cat([ids[:, :half], ids[:, half:]]))
    torch.testing.assert_close(packed["loss"], apart["loss"], rtol=1e-5, atol=1e-6)
    assert (module(ids, labels)["loss"] - packed["loss"]).abs() > 1e-3


def test_hidden_states_are_those_transformers_reports() -> None:
    model, ids = make_model(), make_ids()
    reported = model(ids, output_hidden_states=True).hidden_states
    before = [len(module._forward_hooks) for module in model.modules()]
    states = body_states(model, ids, None, (EMBEDDING, 0, 1))
    for layer in (EMBEDDING, 0, 1):
        assert torch.equal(states.inner[layer], reported[layer + 1])
    assert torch.equal(states.last, reported[-1])
    assert [len(module._forward_hooks) for module in model.modules()] == before


@pytest.mark.parametrize("width", [64, 32])
def test_state_losses_equal_their_definition(width: int) -> None:
    student, teacher = make_student(hidden_size=width), make_model(seed=2)
    loss = LossConfig(intermediate="cosine", embedding="mse", layer_pairs=((2, 1), (0, 0)))
    module = DistillationModule(student, teacher, loss)
    assert (module.projection is None) is (width == 64)
    ids, labels = make_ids(), sparse_labels()
    counted = labels != IGNORED
    ours = [state[counted] for state in student(ids, output_hidden_states=True).hidden_states]
    theirs = [state[counted] for state in teacher(ids, output_hidden_states=True).hidden_states]
    if module.projection is not None:
        ours = [module.projection(state) for state in ours]
    last = body_states(teacher, ids, None, (2,)).inner[2][counted]  # before the final norm
    states = cosine_distance(ours[2], last).sum()
    states = states + cosine_distance(ours[1], theirs[1]).sum()
    states = (states + (ours[0] - theirs[0]).square().mean(-1).sum()) / 3
    kl = forward_kl(student(ids).logits[counted], teacher(ids).logits[counted]).sum()
    alpha = (kl / states).detach()
    expected = (kl + alpha * states) / counted.sum()
    found = module(ids, labels)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(found["loss"], expected, module.parameters(), tolerance=1e-3)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_state_losses_reach_through_activation_checkpointing(use_reentrant: bool) -> None:
    student = make_student().train()
    loss = LossConfig(intermediate="cosine", layer_pairs=((1, 1),))
    module = DistillationModule(student, make_model(seed=2), loss)
    module(make_ids())["loss"].backward()
    expected = [parameter.grad for parameter in student.parameters()]
    student.zero_grad(set_to_none=True)
    student.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    module(make_ids())["loss"].backward()
    torch.testing.assert_close([parameter.grad for parameter in student.parameters()], expected)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
def test_final_transforms_are_the_models_own(model_type: str, fields: dict[str, float]) -> None:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **fields,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
        for parameter in (*student.parameters(), *teacher.parameters()):
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.5)
    ids = make_ids().remainder(50)
    counted = next_tokens(ids) != IGNORED
    torch.testing.assert_close(
        head_of(student).logits(student.base_model(ids).last_hidden_state[0]), student(ids).logits[0]
    )
    plain = forward_kl(student(ids).logits[counted], teacher(ids).logits[counted].detach()).mean()
    found = DistillationModule(student, teacher)(ids)["loss"]
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    assert_same_gradients(found, plain, student.parameters())


def test_a_head_with_a_bias_is_refused() -> None:
    student = make_student(tie_word_embeddings=False)
    student.lm_head = torch.nn.Linear(64, VOCAB_SIZE)
    with pytest.raises(UnsupportedError, match="bias"):
        DistillationModule(student, make_model(seed=2))


def test_a_corrected_teacher_learns_by_its_own_cross_entropy_alone() -> None:
    student, teacher = make_student(), make_model(seed=2)
    ids, labels = make_ids(), sparse_labels()
    without = DistillationModule(student, teacher)(ids, labels)
    teacher.requires_grad_(requires_grad=True)
    plain = functional.cross_entropy(
        teacher(ids).logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )
    module = DistillationModule(student, teacher, corrects_teacher=True)
    found = module(ids, labels)
    torch.testing.assert_close(found["loss"], without["loss"] + plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(found["window_losses"], without["window_losses"])
    parameters = [*student.parameters(), *teacher.parameters()]
    assert_same_gradients(found["loss"], without["loss"] + plain, parameters)


def test_the_teacher_is_no_part_of_the_module() -> None:
    module = DistillationModule(make_student(), make_model(seed=2), corrects_teacher=True)
    assert all(name.startswith("student.") for name, _ in module.named_parameters())
    assert module.teacher is not None
