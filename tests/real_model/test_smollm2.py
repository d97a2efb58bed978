"""The real model: known perplexity, exact slicing, and the main job's stages on real weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.evaluation.perplexity import perplexity
from compressor.models.dims import num_parameters
from compressor.models.load import load_model
from compressor.models.presets import PRESETS
from compressor.models.source import open_checkpoint, resolve_source, source_dims
from compressor.models.tokenizer import load_tokenizer
from compressor.pruning.slicing import slice_checkpoint
from tests.assets import Assets
from tests.integration.command import succeed, succeed_here, write_recipe
from tests.unit.pruning.test_slicing import random_plan, zeroed_reference


@pytest.fixture(scope="module")
def checkpoint(real_assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = resolve_source(str(real_assets.gguf))
    return open_checkpoint(source, tmp_path_factory.mktemp("teacher"), dtype="float32").path


def test_the_gguf_header_tells_the_shape(real_assets: Assets) -> None:
    dims = source_dims(resolve_source(str(real_assets.gguf)))
    assert dims == PRESETS["smollm2-135m"].dims
    assert num_parameters(dims) == 134_515_008


def test_special_tokens_follow_the_files_metadata(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    assert tokenizer.eos_token_id == config["eos_token_id"] == 2
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|im_end|>"


def test_perplexity_equals_transformers_own_loss(checkpoint: Path, real_assets: Assets) -> None:
    tokenizer = load_tokenizer(checkpoint)
    text = real_assets.texts["wiki"].read_text(encoding="utf-8")[:20_000]
    windows = tokenizer(text, return_tensors="np").input_ids[0, : 4 * 512].astype("uint32").reshape(4, 512)
    model = load_model(checkpoint, dtype="float32", device="cpu")
    ids = torch.from_numpy(windows.astype("int64"))
    losses = [model(window[None], labels=window[None]).loss.item() for window in ids]
    measured, _ = perplexity(model, windows)
    assert measured.num_tokens == 4 * 511
    assert measured.mean_nll == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert 5 < measured.perplexity < 40


def test_slicing_is_exact_on_real_weights(checkpoint: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 432, "intermediate_size": 1024, "num_hidden_layers": 20}
    plan = random_plan(checkpoint, **shape)
    slice_checkpoint(checkpoint, plan, tmp_path)
    ids = torch.randint(0, 49_000, (1, 64))
    found = load_model(tmp_path, dtype="float32", device="cpu")(ids).logits
    expected = zeroed_reference(checkpoint, plan)(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def run(real_assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The main job with a few seconds of everything."""
    directory = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(
        directory / "recipe.yaml",
        *(real_assets.gguf, real_assets.texts["wiki"]),
        target="80m",
        prune={"shape": None},
        calibration={"size": 16, "seq_len": 256},
        distill={"tokens": 6144, "context_length": 128, "micro_batch_size": 4, "learning_rate": 5e-4},
        quantize={"fp8": True},
        evaluate={"seq_len": 512, "size": 2},
        export={"formats": ["huggingface", "huggingface-fp8", "onnx"]},
    )
    return succeed("run", "--config", recipe, "-o", directory / "out")


def test_the_main_job_verifies_and_improves(run: dict[str, Any]) -> None:
    assert run["plan"]["student"]["num_parameters"] == 80_872_128
    models = run["evaluation"]["models"]
    assert models["teacher"]["perplexity"] < models["distilled"]["perplexity"]
    assert models["distilled"]["perplexity"] < models["reconstructed"]["perplexity"]
    assert models["reconstructed"]["perplexity"] < models["pruned"]["perplexity"]
    assert models["quantized"]["perplexity"] == pytest.approx(models["distilled"]["perplexity"], rel=0.1)
    logits = run["exports"]["onnx"]["logits"]["all"]
    assert logits["num_positions"] >= 2000
    assert logits["top1_agreement"] >= 0.999
    assert logits["max_relative"] <= 1e-3


def test_verify_accepts_the_run_directory(run: dict[str, Any]) -> None:
    report = succeed_here("verify", run["out_dir"])
    assert {check["status"] for check in report["checked"]} <= {"ok", "bit-equal", "passed", "reported"}
    out = Path(run["out_dir"])
    checked = {str(Path(check["path"]).relative_to(out)) for check in report["checked"]}
    stages = {f"stages/{name}" for name in ("prune", "reconstruct", "distill", "quantize", "evaluate")}
    assert checked == {*stages, "student", "exports/huggingface-fp8", "exports/onnx"}


def test_a_sparse_student_is_sparse_in_every_export(
    run: dict[str, Any], real_assets: Assets, tmp_path: Path
) -> None:
    text = ("--calib-data", real_assets.texts["wiki"], "--calib-size", 2, "--calib-seq-len", 256)
    student = Path(run["out_dir"]) / "stages" / "distill"
    sparse, quantized = tmp_path / "sparse", tmp_path / "quantized"
    succeed_here("sparsify", student, "--sparsity-method", "wanda", *text, "-o", sparse)
    succeed_here("quantize", sparse, "--fp8", *text, "-o", quantized)
    for export_format, precision in (("huggingface", "fp8"), ("onnx", "fp32"), ("onnx", "int4")):
        out = tmp_path / f"{export_format}-{precision}"
        succeed_here("export", quantized, "--format", export_format, "--precision", precision, "-o", out)
        [checked] = succeed_here("verify", out)["checked"]
        assert checked["sparsity"] == {"pattern": "2:4", "num_tensors": 175}, out.name


def test_a_family_of_two_is_one_command(real_assets: Assets, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        *(real_assets.gguf, real_assets.texts["wiki"]),
        target="100m,80m",
        prune={"shape": None},
        calibration={"seq_len": 256},
        distill={"tokens": 1024, "context_length": 128, "micro_batch_size": 4},
        evaluate={"seq_len": 256, "size": 2},
        export={"formats": ["huggingface"]},
    )
    family = succeed("run", "--config", recipe, "-o", tmp_path / "family")
    assert family["complete"] is True
    first, second = family["members"]
    assert (first["name"], second["name"]) == ("100m", "80m")
    for entry, target in ((first, 100_000_000), (second, 80_000_000)):
        assert entry["num_parameters"] == pytest.approx(target, rel=0.02)
    assert Path(second["teacher"]) == tmp_path / "family" / first["student"]
