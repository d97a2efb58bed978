"""Probes: a module in memory and plain transformers on its files agree, or the files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import save_trained
from compressor.models.digests import read_digests
from compressor.models.sparse.layers import install_sparse_layers_
from compressor.models.sparse.low_rank import AdapterBranch, write_adapter
from compressor.runs.artifact import ModelArtifact
from compressor.training.probes import (
    NUM_PROBES,
    PROBE_TOKENS,
    check_probes,
    probe_inputs,
    probe_logits,
    read_probes,
)
from tests.rope_forms import FIRST_WITH_ROPE_PARAMETERS, GENERATION
from tests.short_training import make_config
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint

WEIGHTS = "model.safetensors"
LONG = {"factor": 8.0, "original_max_position_embeddings": 256}
ROPE_FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama3": {
        "rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LONG}
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", **LONG}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}


def saved(model: Any, root: Path, *, dtype: torch.dtype = torch.bfloat16, **keywords: Any) -> Path:
    """A model written as training writes it."""
    source, out = save_checkpoint(root / "source", model), root / "out"
    out.mkdir()
    artifact = ModelArtifact(path=source, stage="source", fingerprint="f", lineage=(), num_parameters=1)
    module = DistillationModule(keywords.pop("student", model), None, LossConfig(kl_weight=0))
    save_trained(module, artifact, out, dtype=dtype, plan=make_config(), **keywords)
    return out


def plainly_loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("form", ROPE_FORMS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "nemotron"])
def test_plain_transformers_answers_the_same_from_the_files(
    model_type: str, form: str, tmp_path: Path
) -> None:
    model = make_model(model_type, **ROPE_FORMS[form])
    if model_type == "nemotron" and form != "plain" and GENERATION < FIRST_WITH_ROPE_PARAMETERS:
        with pytest.raises(UnsupportedError, match="ignores rope_scaling"):
            saved(model, tmp_path)
        return
    out = saved(model, tmp_path)
    assert check_probes(plainly_loaded(out), read_probes(out), where="here") < 1e-5


def test_the_logits_are_those_of_the_stored_weights_not_of_the_trained_ones(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=False)
    inputs = probe_inputs(vocab_size=VOCAB_SIZE, max_length=2048)
    trained = probe_logits(model, *inputs)
    out = saved(model, tmp_path)
    assert not torch.equal(read_probes(out).logits, trained)
    stored = load_file(out / WEIGHTS)
    for name, parameter in model.named_parameters():  # the module was rounded in place
        assert torch.equal(parameter, stored[name].float())


def test_probes_reach_through_the_whole_context() -> None:
    ids, positions = probe_inputs(vocab_size=VOCAB_SIZE, max_length=8192)
    assert ids.shape == positions.shape == (NUM_PROBES, PROBE_TOKENS)
    assert positions[0].tolist() == list(range(PROBE_TOKENS))
    assert 8192 - positions[1].max() <= 8192 // PROBE_TOKENS
    assert int(ids.max()) < VOCAB_SIZE
    short, _ = probe_inputs(vocab_size=VOCAB_SIZE, max_length=24)
    assert short.shape == (NUM_PROBES, 24)


def swapped(first: str, second: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        state = load_file(directory / WEIGHTS)
        state[first], state[second] = state[second], state[first]
        save_file(state, directory / WEIGHTS, metadata={"format": "pt"})

    return change


def configured(**values: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        for name, value in values.items():
            assert config[name] != value
        (directory / "config.json").write_text(json.dumps({**config, **values}))

    return change


LAYER = "model.layers.0."
FAULTS: dict[str, Callable[[Path], None]] = {
    "gate and up": swapped(f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"),
    "k and v": swapped(f"{LAYER}self_attn.k_proj.weight", f"{LAYER}self_attn.v_proj.weight"),
    "norms": swapped(f"{LAYER}input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
    "rope base": configured(rope_theta=1e4, rope_parameters={"rope_theta": 1e4, "rope_type": "default"}),
    "rope scaling": configured(
        rope_scaling={"rope_type": "linear", "factor": 1.25},
        rope_parameters={"rope_theta": 5e4, "rope_type": "linear", "factor": 1.25},
    ),
    "activation": configured(hidden_act="gelu"),
    "heads": configured(num_attention_heads=8, num_key_value_heads=4, head_dim=8),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_files_are_refused(fault: str, tmp_path: Path) -> None:
    out = saved(make_model(), tmp_path)
    probes = read_probes(out)
    FAULTS[fault](out)
    with pytest.raises(VerificationError, match="compute something else"):
        check_probes(plainly_loaded(out), probes, where="here")


def test_not_a_number_is_no_agreement(tmp_path: Path) -> None:
    out = saved(make_model(), tmp_path)
    model = plainly_loaded(out)
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(VerificationError, match="compute something else"):
        check_probes(model, read_probes(out), where="here")


@pytest.mark.parametrize("damage", ["missing", "truncated", "of another schema", "without logits"])
def test_probes_that_cannot_be_read_are_refused(damage: str, tmp_path: Path) -> None:
    out = saved(make_model(), tmp_path)
    file = out / "probes.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-4])
    else:
        tensors = load_file(file)
        if damage == "without logits":
            del tensors["logits"]
        save_file(tensors, file, metadata={"schema": "another", "compute_dtype": "float32"})
    with pytest.raises(VerificationError, match="probes"):
        read_probes(out)


def test_peft_answers_the_same_with_the_adapter(tmp_path: Path) -> None:
    """The branch is part of what was trained: peft, which knows nothing of us, applies it from the files."""
    model, student = make_model(seed=3), make_model(seed=3)
    generator = torch.Generator().manual_seed(1)
    branches = {
        f"model.layers.{index}.mlp.up_proj": AdapterBranch(
            down=torch.randn(4, 64, generator=generator) / 8, up=torch.randn(192, 4, generator=generator) / 8
        )
        for index in (0, 2)
    }
    install_sparse_layers_(student, branches=branches)
    out = saved(model, tmp_path, student=student, dtype=torch.float32, branches=branches)
    write_adapter(out, branches)
    with_adapter = peft.PeftModel.from_pretrained(plainly_loaded(out), out / "adapter").eval()
    assert check_probes(with_adapter, read_probes(out), where="here") < 1e-5
    with pytest.raises(VerificationError, match="compute something else"):
        check_probes(plainly_loaded(out), read_probes(out), where="here")
    assert sum(name.startswith("adapter/") for name in read_digests(out)) == 4
