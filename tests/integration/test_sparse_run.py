"""The whole road with 2:4 sparsity on a tiny model, and the sparse commands one by one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.command import command_here, succeed_here, write_recipe
from tests.records import record_again

Finished = tuple[Path, dict[str, Any]]  # a run's directory and its summary
WEIGHTS_FILE = "model.safetensors"
TENSORRT_LLM = ["tensorrt-llm-fp16", "tensorrt-llm-fp8"]
FORMATS = ["huggingface", "huggingface-fp8", *TENSORRT_LLM, "onnx", "onnx-int4"]


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(
        tmp_path_factory.mktemp("recipes") / "sparse.yaml",
        *(tiny_checkpoint, tiny_text),
        distill={"learning_rate": 2e-3},
        sparsify={"pattern": "2:4", "method": "ast"},
        quantize={"fp8": True},
        export={"formats": FORMATS},
    )


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("runs") / "out"
    return out, succeed_here("run", "--config", recipe, "-o", out)


def test_every_export_is_verified_sparse(finished: Finished) -> None:
    out, summary = finished
    models = list(summary["evaluation"]["models"])
    assert models == [
        *(
            "teacher",
            "pruned",
            "reconstructed",
            "distilled",
            "sparsified",
            "repaired",
            "recovered",
            "quantized",
        )
    ]
    for details in summary["exports"].values():
        assert details["checks"]["sparsity"]["pattern"] == "2:4"
    assert list(summary["exports"]) == FORMATS
    for name in TENSORRT_LLM:
        engine = summary["exports"][name]["engine"]
        assert set(engine["commands"]) == {"engine", "engine-dense"}
        assert engine["commands"]["engine"].endswith("--weight_sparsity")
    checked = succeed_here("verify", out)["checked"]
    sparse = {entry["path"].removeprefix(f"{out}/") for entry in checked if "sparsity" in entry}
    assert sparse == {
        *("stages/sparsify", "stages/reconstruct-sparse", "stages/recover", "stages/quantize", "student"),
        *(f"exports/{name}" for name in FORMATS if name != "huggingface"),
    }


def test_verify_catches_a_planted_nonzero(finished: Finished, tmp_path: Path) -> None:
    recovered = Path(shutil.copytree(finished[0] / "stages" / "recover", tmp_path / "recover"))
    tensors, name = load_file(recovered / WEIGHTS_FILE), "model.layers.0.self_attn.v_proj.weight"
    row = tensors[name][7]
    row[4 + (row[4:8] == 0).nonzero()[0]] = 0.5
    save_file(tensors, recovered / WEIGHTS_FILE, metadata={"format": "pt"})
    record_again(recovered)
    done = command_here("verify", recovered)
    assert done.returncode == 8
    assert f"{name}[7, 4:8]" in done.stderr


def test_sparsify_then_distill_holds_the_mask(tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path) -> None:
    calibration = ("--calib-data", tiny_text, "--calib-size", 4, "--calib-seq-len", 32)
    training = ("--train-data", tiny_text, "--tokens", 640, "--context-length", 32)
    sparse, held = tmp_path / "sparse", tmp_path / "held"
    made = succeed_here("sparsify", tiny_checkpoint, "--sparsity-method", "wanda", *calibration, "-o", sparse)
    assert made["lineage"] == ["source", "sparsify"]
    trained = succeed_here("distill", sparse, "--teacher", tiny_checkpoint, *training, "-o", held)
    assert trained["lineage"] == ["source", "sparsify", "recover"]
    assert trained["details"]["masks"] == "fixed"
    assert succeed_here("verify", held)["checked"][0]["sparsity"]["num_tensors"] == 21


def test_a_run_repairs_sparse_weights_and_their_branches(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--shape", "intermediate_size=128", "--importance", "random", "--tokens", 0)
    words += ("--sparsity", "2:4", "--slorb", "fixed", "--slorb-group-size", 8, "--repair", "least-squares")
    words += ("--calib-data", tiny_text, "--calib-size", 8, "--calib-seq-len", 32)
    words += ("--eval-data", tiny_text, "--formats", "huggingface")
    summary = succeed_here("run", tiny_checkpoint, *words, "-o", out)
    assert [*summary["evaluation"]["models"]][-2:] == ["sparsified", "repaired"]
    sparse, repaired = (out / "stages" / name for name in ("sparsify", "reconstruct-sparse"))
    before, after = (load_file(path / "adapter/adapter_model.safetensors") for path in (sparse, repaired))
    assert set(before) == set(after)
    exported = load_file(out / "student/adapter/adapter_model.safetensors")
    assert all(torch.equal(exported[name], after[name]) for name in after)
    assert any(not torch.equal(before[name], after[name]) for name in after)
    succeed_here("verify", out)


def test_ast_is_one_command(tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path) -> None:
    made = succeed_here(
        *("sparsify", tiny_checkpoint, "--sparsity-method", "ast", "--slorb", "trained"),
        *("-o", tmp_path / "ast"),
        *("--calib-data", tiny_text, "--calib-size", 4, "--calib-seq-len", 32),
        *("--train-data", tiny_text, "--tokens", 640, "--context-length", 32),
    )
    assert made["details"]["masks"] == "moving"
    assert (tmp_path / "ast" / "adapter" / "adapter_config.json").is_file()
    evaluation = succeed_here(
        *("evaluate", tiny_checkpoint, tmp_path / "ast", "--data", tiny_text),
        *("--seq-len", 64, "--size", 2, "-o", tmp_path / "quality"),
    )
    assert len(evaluation["models"]) == 2
    assert evaluation["protocol"]["split"] == "held_out"
    again = command_here(
        *("distill", tmp_path / "ast", "--teacher", tiny_checkpoint, "--train-data", tiny_text),
        *("--kl-weight", 0.5, "--loss", "reverse-kl", "-o", tmp_path / "again"),
    )
    assert again.returncode == 2
    assert "distill.kl_weight" in again.stderr
    assert "--loss" not in again.stderr


def test_ast_goes_on_from_a_repaired_sparse_model(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    calibration = ("--calib-data", tiny_text, "--calib-size", 8, "--calib-seq-len", 32)
    succeed_here(
        *("sparsify", tiny_checkpoint, "--mask-swaps", 2, "--slorb", "trained", "--slorb-group-size", 8),
        *("-o", tmp_path / "sparse", *calibration),
    )
    words = ("reconstruct", tmp_path / "sparse", "--teacher", tiny_checkpoint)
    succeed_here(*words, "-o", tmp_path / "repaired", *calibration)
    training = ("--train-data", tiny_text, "--tokens", 640, "--context-length", 32)
    ast = ("sparsify", tmp_path / "repaired", "--sparsity-method", "ast", *training)
    teacher = ("--teacher", tiny_checkpoint)
    made = succeed_here(*ast, *teacher, "--slorb", "trained", "-o", tmp_path / "ast")
    assert made["details"]["masks"] == "moving"
    assert made["details"]["adapter_parameters"] > 0
    for directory in ("repaired", "ast"):
        weights = load_file(tmp_path / directory / "model.safetensors")
        weight = weights["model.layers.0.mlp.down_proj.weight"]
        assert int((weight.unflatten(1, (-1, 4)) != 0).sum(2).max()) <= 2

    refusals: list[tuple[str, tuple[object, ...]]] = [
        ("sparse already", ()),
        ("sparsify.swaps", (*teacher, "--mask-swaps", 3)),
        ("sparsify.pattern", (*teacher, "--sparsity", "1:4")),
        ("calibration", (*teacher, *calibration)),
    ]
    for said, words in refusals:
        refused = command_here(*ast, *words, "-o", tmp_path / "refused")
        assert refused.returncode == 2
        assert said in refused.stderr
        assert not (tmp_path / "refused").exists()
