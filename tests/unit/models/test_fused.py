"""A family of fused projections is its table entry alone: against the same model with separate projections.

Phi-3's class differs from Llama's only in that it joins q, k and v, and gate and up. The second model is
made here by splitting the tensors by hand; whatever is counted, scored or cut must not see a difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import WEIGHTS_FILE, CheckpointReader, read_config
from compressor.models.dims import dims_of_config, num_linear_parameters, num_parameters
from compressor.models.load import load_model
from compressor.pruning.importance import (
    ImportanceScores,
    activation_importance,
    weight_magnitude_importance,
)
from compressor.pruning.plan import make_plan
from compressor.pruning.slicing import slice_checkpoint
from compressor.recipe.recipe import Export
from compressor.runs.stage import execute
from exporters.export_stage import export_stage
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.exporters.conftest import artifact_of, context

SHAPE = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
WINDOWS = np.random.default_rng(0).integers(0, 320, (3, 24)).astype(np.uint32)
HEAD_DIM, NUM_KEY_VALUE_HEADS = 16, 2


def split(source: Path, directory: Path) -> Path:
    """The same model with separate projections, by hand."""
    config = json.loads((source / "config.json").read_text())
    keys = NUM_KEY_VALUE_HEADS * HEAD_DIM
    sizes = {
        "self_attn.qkv_proj": ("qkv", (config["num_attention_heads"] * HEAD_DIM, keys, keys)),
        "mlp.gate_up_proj": (("gate", "up"), (config["intermediate_size"],) * 2),
    }
    tensors = {}
    for name, tensor in load_file(source / WEIGHTS_FILE).items():
        for module, (parts, rows) in sizes.items():
            if module in name:
                parent = name.partition(module)[0] + module.split(".")[0]
                for part, block in zip(parts, tensor.split(rows), strict=True):
                    tensors[f"{parent}.{part}_proj.weight"] = block.clone()
                break
        else:
            tensors[name] = tensor
    directory.mkdir()
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    del config["sliding_window"]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with fused projections, and the same one with separate projections."""
    root = tmp_path_factory.mktemp("fused")
    fused = save_checkpoint(root / "fused", make_model("phi3", tie_word_embeddings=request.param))
    return fused, split(fused, root / "separate")


def logits(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, local_files_only=True)
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    result: torch.Tensor = model(ids, use_cache=False).logits
    return result.detach()


def test_both_are_the_same_model_of_the_same_size(pair: tuple[Path, Path]) -> None:
    fused, separate = pair
    torch.testing.assert_close(logits(fused), logits(separate), rtol=1e-9, atol=1e-9)
    ours, other = (dims_of_config(read_config(path)) for path in pair)
    assert num_parameters(ours) == num_parameters(other)
    assert num_linear_parameters(ours) == num_linear_parameters(other)


def weight_magnitude(directory: Path) -> ImportanceScores:
    with CheckpointReader(directory) as reader:
        return weight_magnitude_importance(reader, dims_of_config(read_config(directory)))


def activation(directory: Path) -> ImportanceScores:
    return activation_importance(ModelAdapter(load_model(directory, dtype="float32", device="cpu")), WINDOWS)


@pytest.mark.parametrize("score", [weight_magnitude, activation])
def test_units_score_and_are_cut_as_in_separate_projections(
    pair: tuple[Path, Path], tmp_path: Path, score: Callable[[Path], ImportanceScores]
) -> None:
    scores = [score(path) for path in pair]
    torch.testing.assert_close(scores[0].blocks, scores[1].blocks, rtol=1e-4, atol=1e-6)
    for axis, found in scores[0].units.items():
        torch.testing.assert_close(found, scores[1].units[axis], rtol=1e-4, atol=1e-6)

    cut = []
    for source in pair:
        dims = dims_of_config(read_config(source))
        plan = make_plan(dims, dims.with_shape(**SHAPE), scores[0], importance="by hand")
        cut.append(tmp_path / source.name)
        cut[-1].mkdir()
        assert slice_checkpoint(source, plan, cut[-1]) == num_parameters(plan.student)
    ours, wanted = (load_file(path / WEIGHTS_FILE) for path in (split(cut[0], tmp_path / "split"), cut[1]))
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    torch.testing.assert_close(logits(cut[0]), logits(cut[1]), rtol=1e-9, atol=1e-9)


def test_the_hugging_face_export_is_exact(tmp_path: Path) -> None:
    student = save_checkpoint(tmp_path / "student", make_model("phi3").to(torch.bfloat16))
    stage = export_stage("huggingface")
    made = execute(stage, Export(), artifact_of(student), tmp_path / "made", context()).artifact.path
    tensors, original = load_file(made / WEIGHTS_FILE), load_file(student / WEIGHTS_FILE)
    assert tensors.keys() == original.keys()
    assert all(torch.equal(tensors[name], original[name]) for name in original)
