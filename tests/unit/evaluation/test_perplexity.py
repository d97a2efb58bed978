"""Perplexity against transformers' own loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from compressor.core.errors import VerificationError
from compressor.evaluation.perplexity import perplexity

WINDOWS = np.random.default_rng(0).integers(0, 320, (3, 40)).astype(np.uint32)


def test_perplexity_equals_transformers_loss(tiny_model: Any) -> None:
    ids = torch.from_numpy(WINDOWS.astype("int64"))
    expected = math.exp(tiny_model(ids, labels=ids).loss.item())
    measured, _ = perplexity(tiny_model, WINDOWS)
    assert measured.perplexity == pytest.approx(expected, rel=1e-5)
    assert measured.num_tokens == 3 * 39
    assert (measured.window, measured.num_windows) == (40, 3)


def test_a_model_that_returns_nan_is_refused(tiny_model: Any) -> None:
    tiny_model.model.norm.weight[0] = float("nan")
    with pytest.raises(VerificationError, match="not finite") as caught:
        perplexity(tiny_model, WINDOWS, where="student")
    assert caught.value.where == "student"
