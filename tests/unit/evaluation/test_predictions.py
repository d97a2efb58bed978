"""Agreement and information against float64 arithmetic on the logits of plain transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from compressor.evaluation.perplexity import perplexity
from compressor.evaluation.predictions import predict
from tests.tiny_models import make_model

WINDOWS = np.random.default_rng(0).integers(0, 320, (3, 300)).astype(np.uint32)  # more than one chunk


def logits_of(model: Any) -> torch.Tensor:
    """Float64 logits of every scored position, `[num_windows, window - 1, vocab_size]`."""
    with torch.no_grad():
        return model(torch.from_numpy(WINDOWS.astype("int64"))).logits[:, :-1].double()


def test_agreement_with_the_first_model() -> None:
    teacher, student = make_model(), make_model(seed=1)
    _, baseline = perplexity(teacher, WINDOWS)
    measured, _ = perplexity(student, WINDOWS, baseline=baseline)
    p, q = logits_of(teacher).softmax(-1), logits_of(student).softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    assert measured.agreement is not None
    assert measured.agreement.kl == pytest.approx(kl.mean().item(), rel=1e-5)
    assert measured.agreement.window_kl == pytest.approx(kl.mean(-1).tolist(), rel=1e-5)
    agreeing = (p.argmax(-1) == q.argmax(-1)).double()
    assert measured.agreement.window_top1 == pytest.approx(agreeing.mean(-1).tolist(), rel=1e-7)
    margins = []
    for first, own in zip(p.argmax(-1).flatten().tolist(), q.flatten(0, 1), strict=True):
        others = torch.cat([own[:first], own[first + 1 :]])
        margins.append(math.log(own[first].item()) - math.log(others.max().item()))
    assert measured.agreement.margin == pytest.approx(sum(margins) / len(margins), rel=1e-4)


@pytest.mark.parametrize("sizes", [(340, 331), (331, 340)])
def test_padded_embeddings_are_left_out_of_the_comparison(sizes: tuple[int, int]) -> None:
    teacher, student = (make_model(seed=seed, vocab_size=size) for seed, size in enumerate(sizes))
    _, baseline = perplexity(teacher, WINDOWS)
    measured, _ = perplexity(student, WINDOWS, baseline=baseline)
    p, q = (logits_of(model)[..., :331].softmax(-1) for model in (teacher, student))
    assert measured.agreement is not None
    assert measured.agreement.kl == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-5)
    agreeing = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert measured.agreement.top1 == pytest.approx(agreeing, rel=1e-7)


def test_a_model_agrees_with_itself() -> None:
    _, baseline = perplexity(make_model(), WINDOWS)
    measured, _ = perplexity(make_model(), WINDOWS, baseline=baseline)
    assert measured.agreement is not None
    assert measured.agreement.kl == pytest.approx(0, abs=1e-6)
    assert measured.agreement.top1 == 1
    assert measured.agreement.margin > 0


def test_information_is_the_entropy_of_the_mean_over_the_mean_entropy() -> None:
    model = make_model()
    found, _ = predict(model, WINDOWS)
    p = logits_of(model).softmax(-1).flatten(0, 1)
    mean = p.mean(0)
    expected = (-(mean * mean.log()).sum() + (p * p.log()).sum(-1).mean()).item()
    assert found.information == pytest.approx(expected, rel=1e-4)
    assert found.nll == pytest.approx([one / 299 for one in found.sums])


def test_a_model_that_answers_the_same_to_everything_has_no_information() -> None:
    model = make_model(tie_word_embeddings=False)
    model.model.norm.weight.zero_()  # all logits are zero, whatever is read
    found, _ = predict(model, WINDOWS)
    assert found.information == pytest.approx(0, abs=1e-5)
