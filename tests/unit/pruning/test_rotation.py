"""Models in a rotated basis against plain transformers, and the rotation against a singular value
decomposition.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor import api
from compressor.cli.main import invoke
from compressor.core.errors import UsageError, VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import read_config
from compressor.models.dims import num_parameters
from compressor.models.families import FAMILIES
from compressor.pruning.plan import PLAN_FILE, PrunePlan, read_plan
from compressor.pruning.prune_stage import PRUNE, stage_config
from compressor.pruning.rotation import ROTATION_FILE, Rotation, principal_components, rotation_of
from compressor.pruning.slicing import slice_checkpoint
from compressor.recipe.recipe import Calibration, Environment, Prune
from compressor.runs.artifact import ModelArtifact
from tests.plans import random_plan
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint

HIDDEN_SIZE = 64
ROTATABLE = [name for name, family in FAMILIES.items() if family.rotatable]
SHAPE = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
WINDOWS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (6, 24)).astype(np.uint32)


def any_rotation(seed: int = 0) -> Rotation:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(HIDDEN_SIZE, HIDDEN_SIZE, generator=generator, dtype=torch.float64)
    components = torch.linalg.qr(matrix).Q.float()
    return Rotation(components=components, variances=torch.linspace(2, 0, HIDDEN_SIZE).double())


def rotated(source: Path, out: Path, **shape: int) -> PrunePlan:
    """The student by a rotation and a plan of chance."""
    out.mkdir()
    rotation = any_rotation()
    plan = random_plan(source, **shape).rotated(rotation.save(out))
    num_written = slice_checkpoint(source, plan, out, rotation=rotation)
    assert num_written == num_parameters(plan.student)
    return plan


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = model(ids).logits
    return found


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ROTATABLE)
def test_rotation_alone_changes_no_logit(model_type: str, tied: bool, tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "m", make_model(model_type, tie_word_embeddings=tied))
    rotated(source, tmp_path / "out")
    expected, student = logits(plain(source)), plain(tmp_path / "out")
    assert (logits(student) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert read_config(tmp_path / "out")["tie_word_embeddings"] is False
    assert not torch.equal(student.lm_head.weight, student.model.embed_tokens.weight)


def projected_reference(source: Path, plan: PrunePlan) -> Any:
    """The original in its own basis, without what is added to the stream outside of the kept directions."""
    model = plain(source)
    config = model.config
    basis = any_rotation().components.double()[:, list(plan.kept["hidden"][0])]
    inside, num_kept = (basis @ basis.T).float(), basis.shape[1]
    head = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        embedding = model.get_input_embeddings()
        embedding.weight = torch.nn.Parameter(embedding.weight @ inside)
        model.lm_head.weight = torch.nn.Parameter(head)
        for position, index in enumerate(plan.layers):
            layer = model.model.layers[index]
            neurons = torch.zeros(config.intermediate_size)
            neurons[list(plan.kept["intermediate"][position])] = 1
            heads = torch.zeros(config.num_attention_heads, config.head_dim)
            heads[list(plan.kept["heads"][position])] = 1
            layer.mlp.down_proj.weight.copy_(inside @ layer.mlp.down_proj.weight * neurons)
            layer.self_attn.o_proj.weight.copy_(inside @ layer.self_attn.o_proj.weight * heads.flatten())
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in plan.layers)
    for position, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = position
    for norm in model.modules():
        if type(norm).__name__.endswith("RMSNorm") and norm.weight.shape[0] == config.hidden_size:
            norm.forward = _norm_of(norm, num_kept)
    config.num_hidden_layers = len(plan.layers)
    return model


def _norm_of(norm: Any, num_kept: int) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        mean_square = x.square().sum(-1, keepdim=True) / num_kept
        scale = (HIDDEN_SIZE / num_kept) ** 0.5
        return norm.weight * scale * x * torch.rsqrt(mean_square + norm.variance_epsilon)

    return forward


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ROTATABLE)
def test_a_rotated_student_is_the_original_projected(model_type: str, tied: bool, tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "m", make_model(model_type, tie_word_embeddings=tied))
    plan = rotated(source, tmp_path / "out", **SHAPE)
    expected, found = logits(projected_reference(source, plan)), logits(plain(tmp_path / "out"))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - logits(plain(source))).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2)])
def test_the_components_are_those_of_all_tokens(layers: tuple[int, ...]) -> None:
    model, seen = make_model(), []
    for layer in (model.model.layers[index] for index in layers):
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model.model.norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    found = principal_components(ModelAdapter(model), WINDOWS, layers=layers)

    rows = torch.cat([states.flatten(0, 1) for states in seen]).double()
    assert len(rows) == WINDOWS.size * (2 * len(layers) + 1)
    rows /= rows.square().mean(1, keepdim=True).sqrt()
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    torch.testing.assert_close(found.variances, values.square() / len(rows), rtol=1e-4, atol=1e-6)
    assert found.variances.sum().item() == pytest.approx(HIDDEN_SIZE, rel=1e-5)
    overlap = (directions[:40] @ found.components.double()[:, :40]).square().sum() / 40
    assert overlap.item() == pytest.approx(1, abs=1e-4)
    assert (found.components.T @ found.components - torch.eye(HIDDEN_SIZE)).abs().max() < 1e-5
    assert (found.components.gather(0, found.components.abs().argmax(0)[None]) > 0).all()


def test_a_stream_that_is_not_finite_is_refused() -> None:
    model = make_model()
    model.model.embed_tokens.weight[int(WINDOWS[0, 0])] = float("nan")
    with pytest.raises(VerificationError, match="not finite"):
        principal_components(ModelAdapter(model), WINDOWS, layers=(0,))


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """By the stage, with scores that need no text."""
    return api.prune(
        str(tiny_checkpoint),
        tmp_path_factory.mktemp("rotated") / "out",
        settings=Prune(importance="random", hidden="rotation", shape=SHAPE),
        calibration=Calibration(data=str(tiny_text), size=4, seq_len=32),
        execution=api.Execution(environment=Environment(dtype="float32")),
    )


def test_the_stage_finds_and_records_the_rotation(made: ModelArtifact, tiny_checkpoint: Path) -> None:
    plan = read_plan(made.path / PLAN_FILE)
    rotation = rotation_of(made.path, plan)
    assert rotation is not None
    assert plan.kept["hidden"] == (tuple(range(48)),)
    assert plan.student.tie_word_embeddings is False
    assert made.num_parameters == num_parameters(plan.student)
    kept = rotation.variances[:48].sum() / rotation.variances.sum()
    assert made.details["hidden_variance_kept"] == pytest.approx(kept.item(), abs=1e-6)
    assert made.details["calibration"]
    assert invoke(["verify", str(made.path), "--source", str(tiny_checkpoint)]) == 0
    embedding = load_file(tiny_checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    own = load_file(made.path / "model.safetensors")
    expected = embedding @ rotation.components[:, :48]
    torch.testing.assert_close(own["model.embed_tokens.weight"], expected, rtol=1e-4, atol=1e-5)


def test_the_rotation_keeps_more_than_channels(
    made: ModelArtifact, tiny_checkpoint: Path, tiny_text: Path
) -> None:
    """Of equally many directions none hold more of the hidden states than the principal components."""
    rotation = rotation_of(made.path, read_plan(made.path / PLAN_FILE))
    assert rotation is not None
    by_channel = (rotation.components.double().square() @ rotation.variances).sort(descending=True).values
    assert rotation.variances[:48].sum() > 1.02 * by_channel[:48].sum()


def test_a_plan_names_the_rotation_beside_it(
    made: ModelArtifact, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = tmp_path / "plan"
    beside.mkdir()
    for name in (PLAN_FILE, ROTATION_FILE):
        shutil.copyfile(made.path / name, beside / name)

    def prune(out: str) -> int:
        words = ["prune", str(tiny_checkpoint), "--plan", str(beside / PLAN_FILE), "--dtype", "float32"]
        return invoke([*words, "-o", str(tmp_path / out), "-q"])

    assert prune("again") == 0
    for name in ("model.safetensors", PLAN_FILE, ROTATION_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (made.path / name).read_bytes()

    document = json.loads((beside / PLAN_FILE).read_text())
    document["kept"]["hidden"] = ["0-31"]
    (beside / PLAN_FILE).write_text(json.dumps(document))
    assert prune("fewer") == 0
    narrow, wide = (load_file(path / "model.safetensors") for path in (tmp_path / "fewer", made.path))
    assert torch.equal(narrow["model.embed_tokens.weight"], wide["model.embed_tokens.weight"][:, :32])
    assert invoke(["verify", str(tmp_path / "fewer"), "--source", str(tiny_checkpoint)]) == 0

    any_rotation(seed=1).save(beside)
    assert prune("another") == 2
    assert "not the rotation that the prune plan names" in capsys.readouterr().err
    (beside / ROTATION_FILE).unlink()
    assert prune("none") == 2
    assert "the rotation of a prune plan cannot be read" in capsys.readouterr().err


def test_a_plan_cannot_rotate_what_cannot_be_rotated(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "m", make_model("nemotron", tie_word_embeddings=False))
    document = {**random_plan(source).model_dump(mode="json"), "rotation": "0" * 64}
    (tmp_path / PLAN_FILE).write_text(json.dumps(document))
    with pytest.raises(UsageError, match="nemotron models cannot be rotated"):
        read_plan(tmp_path / PLAN_FILE)


def test_a_student_from_before_this_choice_is_known(tiny_checkpoint: Path) -> None:
    plan = random_plan(tiny_checkpoint, **SHAPE)
    assert "rotation" not in plan.model_dump(mode="json")
    channels, rotation = (
        PRUNE.content(stage_config(plan.student, Prune(hidden=hidden), Calibration()))["prune"]
        for hidden in ("channels", "rotation")
    )
    assert isinstance(channels, dict)
    assert isinstance(rotation, dict)
    assert rotation == {**channels, "hidden": "rotation"}
