"""Labels of the loss on responses, and loss and gradient by brute force in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from compressor.core.errors import VerificationError
from compressor.data.packing import IGNORED, TokenWindows, mask_path, write_tokens
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.training.batches import collate
from tests.tiny_models import make_model
from tests.unit.data.test_responses import CHAT, CHATML
from tests.unit.data.texts import chat, with_template, write_rows

SEQ_LEN = 24


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    long = chat(user="a long question without any answer at all " * 3)
    rows = write_rows(tmp_path / "x.jsonl", *({"messages": each} for each in (CHAT, CHAT[:2], long, CHAT)))
    tokens, tokenizer = tmp_path / "tokens", with_template(CHATML)
    write_tokens(str(rows), "all", tokenizer, tokens, max_tokens=10**6, loss_on="responses")
    return tokens


@pytest.mark.parametrize("isolate", [False, True])
def test_labels_are_those_of_responses_and_windows_without_any_are_none(tokens: Path, isolate: bool) -> None:
    ids, mask = np.fromfile(tokens, "<u4"), np.fromfile(mask_path(tokens), np.uint8)
    windows = TokenWindows(tokens, seq_len=SEQ_LEN, isolate_documents=isolate, loss_on="responses")
    everything = TokenWindows(tokens, seq_len=SEQ_LEN, isolate_documents=isolate)
    expected = []
    for index in range(len(everything)):
        labels = everything[index]["labels"].copy()
        for offset in range(SEQ_LEN):
            following = index * SEQ_LEN + offset + 1
            if following >= len(ids) or not mask[following]:
                labels[offset] = IGNORED
        if (labels != IGNORED).any():
            expected.append((everything[index]["input_ids"].tolist(), labels.tolist()))

    assert 0 < len(expected) < len(everything)
    found = [windows[index] for index in range(len(windows))]
    assert [(window["input_ids"].tolist(), window["labels"].tolist()) for window in found] == expected


def test_the_mask_belongs_to_the_tokens(tokens: Path) -> None:
    mask_path(tokens).write_bytes(b"\1")
    with pytest.raises(VerificationError, match="which tokens"):
        TokenWindows(tokens, seq_len=SEQ_LEN, loss_on="responses")


@pytest.mark.parametrize("kl_weight", [1.0, 0.0, 0.67])
def test_loss_and_gradient_are_means_over_the_tokens_of_responses(tokens: Path, kl_weight: float) -> None:
    """Against plain transformers' logits in float64, summed position by position."""
    windows = TokenWindows(tokens, seq_len=SEQ_LEN, loss_on="responses")
    batch = collate([{**windows[index], "domain_id": 0} for index in range(len(windows))])
    student, teacher = make_model(seed=1).double(), make_model(seed=2).double()
    student.requires_grad_(requires_grad=True)
    module = DistillationModule(student, teacher, LossConfig(kl_weight=kl_weight))
    loss = module(**batch)["loss"]
    loss.backward()
    weight = student.model.layers[0].mlp.up_proj.weight
    found, gradient = float(loss.detach()), weight.grad.clone()
    weight.grad = None

    ids, labels = batch["input_ids"], batch["labels"]
    log_q = student(ids).logits.log_softmax(-1)
    log_p = teacher(ids).logits.log_softmax(-1)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(ids)):
        for position in range(SEQ_LEN):
            label = int(labels[row, position])
            if label == IGNORED:
                continue
            divergence = functional.kl_div(
                log_q[row, position], log_p[row, position], log_target=True, reduction="sum"
            )
            total = total + kl_weight * divergence - (1 - kl_weight) * log_q[row, position, label]
            count += 1
    expected = total / count
    expected.backward()

    assert found == pytest.approx(float(expected.detach()), rel=1e-9)
    assert torch.allclose(gradient, weight.grad, rtol=1e-7, atol=1e-12)
    assert count == int((labels != IGNORED).sum()) < labels.numel()
