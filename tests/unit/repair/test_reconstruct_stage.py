"""The reconstruct command on tiny models: what it keeps, what it refuses, and what `verify` finds in it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from compressor import api
from compressor.cli.main import invoke
from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.data.calibration import calibration_windows
from compressor.models.load import load_model
from compressor.models.sparse.low_rank import (
    ADAPTER_DIRECTORY,
    AdapterBranch,
    read_adapter,
    write_adapter,
)
from compressor.models.sparse.record import MASKS_FILE
from compressor.pruning.plan import PLAN_FILE
from compressor.pruning.rotation import ROTATION_FILE
from compressor.recipe.recipe import Calibration, Environment, Prune, Sparsify
from compressor.repair.choice import use_of
from compressor.runs.artifact import ModelArtifact
from tests.records import record_again

FLOAT32 = api.Execution(environment=Environment(dtype="float32"))
WEIGHTS = "model.safetensors"
CARRIED = {"pruned": (PLAN_FILE,), "rotated": (PLAN_FILE, ROTATION_FILE), "sparse": (MASKS_FILE,)}


@pytest.fixture(scope="module")
def calibration(tiny_text: Path) -> Calibration:
    return Calibration(data=str(tiny_text), size=24, seq_len=64)


@pytest.fixture(scope="module")
def pruned(
    tiny_checkpoint: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    settings = Prune(shape={"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2})
    out = tmp_path_factory.mktemp("pruned") / "out"
    return api.prune(str(tiny_checkpoint), out, settings=settings, calibration=calibration, execution=FLOAT32)


@pytest.fixture(scope="module")
def rotated(
    tiny_checkpoint: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    settings = Prune(shape={"hidden_size": 48, "num_hidden_layers": 2}, hidden="rotation")
    out = tmp_path_factory.mktemp("rotated") / "out"
    return api.prune(str(tiny_checkpoint), out, settings=settings, calibration=calibration, execution=FLOAT32)


@pytest.fixture(scope="module")
def sparse(
    tiny_checkpoint: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    settings, out = Sparsify(method="magnitude"), tmp_path_factory.mktemp("sparse") / "out"
    return api.sparsify(
        str(tiny_checkpoint), out, settings=settings, calibration=calibration, execution=FLOAT32
    )


def repaired(
    student: ModelArtifact, teacher: Path, calibration: Calibration, out: Path, steps: int = 0
) -> ModelArtifact:
    return api.reconstruct(
        str(student.path), out, teacher=str(teacher), calibration=calibration, steps=steps, execution=FLOAT32
    )


def distance(model: Path, teacher: Path, text: Path) -> float:
    """Mean squared difference of log-probabilities on the end of a text, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    ids = torch.tensor([tokenizer(text.read_text(encoding="utf-8"))["input_ids"][-256:]])
    with torch.no_grad():
        found, wanted = (
            torch.log_softmax(load_model(path, dtype="float32", device="cpu")(ids).logits, -1)
            for path in (model, teacher)
        )
    return (found - wanted).square().mean().item()


@pytest.mark.parametrize("kind", ["pruned", "rotated", "sparse"])
def test_the_repaired_model_is_nearer_to_its_teacher(
    kind: str,
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tiny_text: Path,
    calibration: Calibration,
    tmp_path: Path,
) -> None:
    student: ModelArtifact = request.getfixturevalue(kind)
    made = repaired(student, tiny_checkpoint, calibration, tmp_path / "out")
    before, after = (distance(path, tiny_checkpoint, tiny_text) for path in (student.path, made.path))
    assert after < before
    assert made.num_parameters == student.num_parameters
    assert made.details["num_accepted"] > 5
    given, found = (load_file(path / WEIGHTS) for path in (student.path, made.path))
    accepted = {name for name, layer in made.details["layers"].items() if layer["accepted"]}
    assert {name for name in given if not torch.equal(given[name], found[name])} == accepted
    for name in CARRIED[kind]:
        assert (made.path / name).read_bytes() == (student.path / name).read_bytes()
    if kind == "sparse":
        for name in accepted:
            assert not found[name][given[name] == 0].any()
    assert invoke(["verify", str(made.path), "--source", str(student.path)]) == 0


def test_a_rotation_that_is_lost_or_another_is_refused(
    rotated: ModelArtifact, tiny_checkpoint: Path, calibration: Calibration, tmp_path: Path, capsys: Any
) -> None:
    made = repaired(rotated, tiny_checkpoint, calibration, tmp_path / "out")
    (made.path / ROTATION_FILE).write_bytes((made.path / WEIGHTS).read_bytes())
    record_again(made.path)
    assert invoke(["verify", str(made.path), "--source", str(rotated.path)]) == 8
    assert ROTATION_FILE in capsys.readouterr().err
    copy = Path(shutil.copytree(rotated.path, tmp_path / "copy"))
    (copy / ROTATION_FILE).unlink()
    record_again(copy)
    with pytest.raises(UsageError, match="rotation of a prune plan cannot be read"):
        repaired(replace(rotated, path=copy), tiny_checkpoint, calibration, tmp_path / "none")


def changed(name: str) -> Any:
    def change(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        tensors[name] = tensors[name] * 1.5
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})

    return change


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_faulty_writer_is_found(
    name: str,
    pruned: ModelArtifact,
    tiny_checkpoint: Path,
    calibration: Calibration,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = repaired(pruned, tiny_checkpoint, calibration, tmp_path / "out")
    other = Path(shutil.copytree(made.path, tmp_path / "other"))
    changed(name)(other)
    record_again(other)
    assert invoke(["verify", str(other), "--source", str(pruned.path)]) == 8
    assert name in capsys.readouterr().err


def test_a_student_of_another_model_is_refused(
    pruned: ModelArtifact, tiny_checkpoint: Path, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not cut from this teacher"):
        repaired(pruned, pruned.path, calibration, tmp_path / "out")
    copy = Path(shutil.copytree(pruned.path, tmp_path / "copy"))
    for name in (PLAN_FILE, "artifact.json"):  # as a checkpoint that was made elsewhere
        (copy / name).unlink()
    with pytest.raises(UsageError, match="not cut from this teacher"):
        api.reconstruct(str(copy), tmp_path / "out", teacher=str(tiny_checkpoint), calibration=calibration)
    assert not (tmp_path / "out").exists()


def test_too_few_sequences_are_refused(
    pruned: ModelArtifact, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["reconstruct", str(pruned.path), "--teacher", str(tiny_checkpoint), "--calib-data"]
    words += [str(tiny_text), "--calib-size", "2", "--calib-seq-len", "32", "-o", str(tmp_path / "out")]
    assert invoke(words) == 2
    error = capsys.readouterr().err
    assert "too few calibration sequences" in error
    assert "--calib-size" in error


def attention_error(made: Path, teacher: Path, calibration: Calibration) -> float:
    """Weighted squared error of the first attention's output on the sequences to accept, by plain models."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    windows = calibration_windows(calibration, tokenizer, seed=0).ids
    outputs: dict[Path, torch.Tensor] = {}
    for path in (made, teacher):
        model, seen = load_model(path, dtype="float32", device="cpu"), []
        block = model.model.layers[0]
        block.self_attn.register_forward_hook(lambda _m, _args, output, seen=seen: seen.append(output[0]))
        block.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for number, window in enumerate(windows):
                if use_of(number, len(windows)) == "accept":
                    model(torch.from_numpy(window.astype("int64"))[None])
        outputs[path] = torch.stack([torch.cat([own.flatten(0, -2) for own in seen[i::2]]) for i in (0, 1)])
    stream = outputs[teacher].sum(0)
    missing = stream - outputs[made].sum(0)
    return (missing.double() / stream.double().square().mean(1, keepdim=True).sqrt()).square().sum().item()


def test_gradient_steps_after_least_squares(
    sparse: ModelArtifact, tiny_checkpoint: Path, calibration: Calibration, tmp_path: Path
) -> None:
    plain = repaired(sparse, tiny_checkpoint, calibration, tmp_path / "plain")
    made = repaired(sparse, tiny_checkpoint, calibration, tmp_path / "made", steps=24)
    parts = made.details["parts"]
    assert len(parts) == 6
    assert any(part["accepted"] for part in parts.values())
    for name, part in parts.items():
        assert 0 <= part["steps"] <= 24, name
        assert not part["accepted"] or part["error_ratio"] < 1, name
    errors = [attention_error(path, tiny_checkpoint, calibration) for path in (made.path, plain.path)]
    first = parts["model.layers.0.self_attn"]
    assert first["accepted"]
    assert errors[0] / errors[1] == pytest.approx(first["error_ratio"], rel=1e-3)
    given, found = (load_file(path / WEIGHTS) for path in (sparse.path, made.path))
    for name, layer in made.details["layers"].items():
        stepped = parts[name.rpartition(".")[0].rpartition(".")[0]]["accepted"]
        assert torch.equal(given[name], found[name]) != (layer["accepted"] or stepped), name
        assert not found[name][given[name] == 0].any()
    assert invoke(["verify", str(made.path), "--source", str(sparse.path)]) == 0


def test_gradient_steps_in_16_bits(
    pruned: ModelArtifact, tiny_checkpoint: Path, calibration: Calibration, tmp_path: Path
) -> None:
    made = api.reconstruct(
        str(pruned.path), tmp_path / "out", teacher=str(tiny_checkpoint), calibration=calibration, steps=8
    )
    assert made.details["steps"] == 8
    assert set(made.details["parts"]) == {
        f"model.layers.{i}.{p}" for i in (0, 1) for p in ("self_attn", "mlp")
    }
    assert invoke(["verify", str(made.path)]) == 0


@pytest.fixture(scope="module")
def branched(
    tiny_checkpoint: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    settings = Sparsify(method="sparsegpt", slorb="trained", slorb_group=8)
    return api.sparsify(
        str(tiny_checkpoint),
        tmp_path_factory.mktemp("branched") / "out",
        settings=settings,
        calibration=calibration,
        execution=FLOAT32,
    )


def with_branches(path: Path, out: Path) -> Path:
    """A checkpoint whose weights compute what its branches add as well."""
    copy = Path(shutil.copytree(path, out))
    tensors = load_file(copy / WEIGHTS)
    for name, branch in read_adapter(path).items():
        tensors[f"{name}.weight"] += branch.up @ branch.down
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    shutil.rmtree(copy / ADAPTER_DIRECTORY)
    return copy


def test_weights_and_then_branches_are_fitted_again(
    branched: ModelArtifact, tiny_checkpoint: Path, tiny_text: Path, calibration: Calibration, tmp_path: Path
) -> None:
    made = repaired(branched, tiny_checkpoint, calibration, tmp_path / "out")
    whole = [
        with_branches(path, tmp_path / name) for path, name in ((branched.path, "was"), (made.path, "is"))
    ]
    was, now, alone = (distance(path, tiny_checkpoint, tiny_text) for path in (*whole, made.path))
    assert now < was
    assert now < alone
    records, branches = made.details["branches"], read_adapter(made.path)
    assert set(records) == set(branches) == set(read_adapter(branched.path))
    assert any(record["accepted"] for record in records.values())
    for name, record in records.items():
        assert bool(branches[name].up.any()) == record["accepted"], name
        assert not record["accepted"] or record["error_ratio"] < 1, name
    given, found = (load_file(path / WEIGHTS) for path in (branched.path, made.path))
    for name in branches:
        assert not found[f"{name}.weight"][given[f"{name}.weight"] == 0].any()
    assert invoke(["verify", str(made.path), "--source", str(branched.path)]) == 0


def test_a_branch_of_the_reconstruction_that_changed_is_found(
    branched: ModelArtifact,
    tiny_checkpoint: Path,
    calibration: Calibration,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = repaired(branched, tiny_checkpoint, calibration, tmp_path / "out")
    branches = read_adapter(made.path)
    name = min(branches)
    branches[name] = AdapterBranch(down=branches[name].down, up=branches[name].up + 1)
    write_adapter(made.path, branches)
    record_again(made.path)
    assert invoke(["verify", str(made.path), "--source", str(branched.path)]) == 8
    assert name in capsys.readouterr().err


def test_a_trained_low_rank_branch_is_refused(
    branched: ModelArtifact, tiny_checkpoint: Path, calibration: Calibration, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(branched.path, tmp_path / "copy"))
    (copy / "artifact.json").unlink()  # as a checkpoint that was made elsewhere
    trained = {
        name: AdapterBranch(down=branch.down + 0.01, up=branch.up)
        for name, branch in read_adapter(copy).items()
    }
    write_adapter(copy, trained)
    for student, teacher in ((copy, tiny_checkpoint), (branched.path, copy)):
        with pytest.raises(UnsupportedError, match="cannot carry the low-rank branch"):
            api.reconstruct(str(student), tmp_path / "out", teacher=str(teacher), calibration=calibration)
    with pytest.raises(UnsupportedError, match="beside its low-rank branch"):
        repaired(branched, tiny_checkpoint, calibration, tmp_path / "out", steps=3)


@pytest.mark.parametrize("value", [float("nan"), 1e38], ids=["nan", "overflow"])
def test_an_activation_that_is_not_finite_is_named(
    value: float, pruned: ModelArtifact, tiny_checkpoint: Path, calibration: Calibration, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(pruned.path, tmp_path / "copy"))
    (copy / "artifact.json").unlink()  # as a checkpoint that was made elsewhere
    tensors = load_file(copy / WEIGHTS)
    tensors["model.layers.0.mlp.gate_proj.weight"][0] = value
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="not finite") as caught:
        api.reconstruct(
            str(copy),
            tmp_path / "out",
            teacher=str(tiny_checkpoint),
            calibration=calibration,
            execution=FLOAT32,
        )
    assert "model.layers." in str(caught.value.where)
