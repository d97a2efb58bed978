"""Wanda and RIA against their formulas, written out as loops over numbers."""

from __future__ import annotations

import torch

from compressor.calibration.sequential import Gram
from compressor.sparsity.scores import input_norms, ria_scores, wanda_scores

ROWS, COLUMNS, TOKENS = 3, 8, 11


def test_scores_equal_their_formulas() -> None:
    weight, inputs = torch.randn(ROWS, COLUMNS).double(), torch.randn(TOKENS, COLUMNS).double()
    norms = input_norms(Gram(total=inputs.T @ inputs, num_tokens=TOKENS))
    wanda, ria = wanda_scores(weight, norms), ria_scores(weight, norms)
    w, x = weight.tolist(), inputs.tolist()
    for i in range(ROWS):
        for j in range(COLUMNS):
            norm = (sum(x[t][j] ** 2 for t in range(TOKENS)) / TOKENS) ** 0.5
            column = sum(abs(w[k][j]) for k in range(ROWS))
            row = sum(abs(w[i][k]) for k in range(COLUMNS))
            assert abs(wanda[i, j].item() - abs(w[i][j]) * norm) < 1e-12
            expected = (abs(w[i][j]) / column + abs(w[i][j]) / row) * norm**0.5
            assert abs(ria[i, j].item() - expected) < 1e-12


def test_a_row_and_a_column_of_zeros_score_zero() -> None:
    weight = torch.randn(ROWS, COLUMNS)
    weight[1], weight[:, 3] = 0, 0
    scores = ria_scores(weight, torch.ones(COLUMNS))
    assert torch.isfinite(scores).all()
    assert scores[1].abs().max() == 0
    assert scores[:, 3].abs().max() == 0
