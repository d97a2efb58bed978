"""A document packed into a window has the logits it has alone, whatever the model class does by itself."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.data.packing import TokenWindows, starts_path, write_tokens
from compressor.models import packed
from compressor.models.packed import document_mask, masks_by_position_ids, packed_arguments
from tests.tiny_models import MODEL_TYPES, make_model

TEXTS = ["the old river", "x", "a stone garden keeps one letter", "winter"]


@pytest.fixture
def window(tmp_path: Path, tiny_tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Ids and position ids `[1, seq_len]` of four documents in one window, and their edges."""
    rows = tmp_path / "x.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    path = tmp_path / "tokens"
    num_tokens = write_tokens(str(rows), "all", tiny_tokenizer, path, max_tokens=10**6)
    arrays = TokenWindows(path, seq_len=num_tokens, isolate_documents=True)[0]
    ids, positions = (torch.from_numpy(arrays[key])[None] for key in ("input_ids", "position_ids"))
    return ids, positions, [*np.fromfile(starts_path(path), "<u8").astype(int).tolist(), num_tokens]


@pytest.mark.parametrize("own_mask", [False, True], ids=["as it comes", "own mask"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_isolated_document_has_the_logits_it_has_alone(
    window: Any, model_type: str, own_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, positions, edges = window
    model = make_model(model_type)
    if own_mask:
        monkeypatch.setattr(packed, "masks_by_position_ids", lambda _model: False)
    arguments = packed_arguments(model, positions)
    assert not own_mask or sorted(arguments) == ["attention_mask", "position_ids"]
    isolated = model(input_ids=ids, use_cache=False, **arguments).logits[0]
    crossing = model(input_ids=ids, use_cache=False).logits[0]

    assert len(edges) == len(TEXTS) + 1
    for first, end in itertools.pairwise(edges):
        alone = model(input_ids=ids[:, first:end], use_cache=False).logits[0]
        assert (isolated[first:end] - alone).abs().max() < 5e-5
        assert first == 0 or (crossing[first:end] - alone).abs().max() > 1e-2


def test_the_mask_by_hand() -> None:
    mask = document_mask(torch.tensor([[0, 1, 0, 0]]), dtype=torch.float32)

    assert (mask[0, 0] == 0).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert mask.shape == (1, 1, 4, 4)


def test_a_class_put_before_the_models_own_hides_nothing() -> None:
    """As sharding does with `fully_shard`."""
    model = make_model("llama")
    body = model.base_model
    body.__class__ = type("Sharded", (type(body),), {"__module__": "elsewhere"})

    assert masks_by_position_ids(model)
