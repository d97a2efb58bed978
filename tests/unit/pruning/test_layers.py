"""What a layer's index decided stays with the layer: against layers deleted by hand in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.models.checkpoint import read_config
from compressor.pruning.slicing import slice_checkpoint
from tests.plans import random_plan
from tests.rope_forms import largest_difference, plain_logits, prompt
from tests.tiny_models import make_model, save_checkpoint

NUM_LAYERS = 5
WINDOW = 8
FULL, SLIDING = "full_attention", "sliding_attention"
BY_INDEX = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
BY_NAME = {**BY_INDEX, "layer_types": [SLIDING, FULL, SLIDING, FULL, FULL]}


def student_of(source: Path, layers: tuple[int, ...], model_type: str, **fields: Any) -> Path:
    """A student that keeps these layers whole; its source says `layer_types` only where it is asked to."""
    save_checkpoint(source, make_model(model_type, num_hidden_layers=NUM_LAYERS, **fields))
    config = json.loads((source / "config.json").read_text())
    if "layer_types" not in fields:
        config.pop("layer_types", None)  # as published: the class derives it
    (source / "config.json").write_text(json.dumps(config))
    student = source.with_name("student")
    student.mkdir()
    whole = random_plan(source)
    kept = {axis: units[: len(layers)] for axis, units in whole.kept.items()}
    slice_checkpoint(source, whole.model_copy(update={"layers": layers, "kept": kept}), student)
    return student


@torch.no_grad()
def with_layers_deleted(checkpoint: Path, layers: tuple[int, ...]) -> torch.Tensor:
    """Logits of the original model, its other layers taken out of the list of modules."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in layers)
    for position, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = position
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in layers]
    logits: torch.Tensor = model.eval()(prompt(), use_cache=False).logits
    return logits


@pytest.mark.parametrize("layers", [(0, 1, 3, 4), (2, 3, 4), (0, 4), (1,), (0, 1), (0, 2, 4)], ids=str)
@pytest.mark.parametrize("fields", [BY_INDEX, BY_NAME], ids=["by-index", "by-name"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_kept_layers_keep_their_windows(
    model_type: str, fields: dict[str, Any], layers: tuple[int, ...], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    student = student_of(source, layers, model_type, **fields)

    expected = with_layers_deleted(source, layers)
    assert largest_difference(plain_logits(student, prompt()), expected) <= 1e-5
    # The test would not see a lost window otherwise.
    assert len(prompt()[0]) > 2 * WINDOW


@pytest.mark.parametrize("layers", [(0, 4), (2, 3)], ids=str)
def test_one_window_for_all_layers_stays(layers: tuple[int, ...], tmp_path: Path) -> None:
    source = tmp_path / "source"
    student = student_of(source, layers, "mistral", sliding_window=WINDOW)

    expected = with_layers_deleted(source, layers)
    assert largest_difference(plain_logits(student, prompt()), expected) <= 1e-5


def test_readers_of_the_older_field_find_the_same(tmp_path: Path) -> None:
    """vLLM and transformers before 4.53 read `max_window_layers` alone."""
    config = read_config(student_of(tmp_path / "source", (1, 2, 4), "qwen2", **BY_INDEX))
    assert config["layer_types"] == [FULL, SLIDING, SLIDING]
    assert config["max_window_layers"] == 1


def test_without_windows_nothing_is_added(tmp_path: Path) -> None:
    assert "layer_types" not in read_config(student_of(tmp_path / "source", (1, 2, 4), "qwen2"))
