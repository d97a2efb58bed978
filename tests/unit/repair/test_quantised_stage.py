"""The reconstruct command on quantised tiny models, computed again by torch's casts and by ModelOpt."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from compressor import api
from compressor.cli.main import invoke
from compressor.core.errors import UnsupportedError, UsageError
from compressor.data.calibration import calibration_windows
from compressor.models.load import load_model
from compressor.quantization.reader import load_fp8_model
from compressor.recipe.recipe import Calibration, Environment, Quantize, Sparsify
from compressor.repair.choice import use_of
from compressor.runs.artifact import ModelArtifact
from exporters.tensorrt_llm.reader import TrtLlmReader
from tests.performance.quantised_results import DETAILS
from tests.records import record_again
from tests.tiny_models import make_model, save_checkpoint

FLOAT32 = api.Execution(environment=Environment(dtype="float32"))
E4M3 = torch.float8_e4m3fn
WEIGHTS, AMAX, UNIFIED = "model.safetensors", "amax.safetensors", "huggingface-fp8"
# Earlier versions clamp the cache's scales to 1.
HAS_CACHE = Version(importlib.metadata.version("nvidia-modelopt")) >= Version("0.38")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def calibration(tiny_text: Path) -> Calibration:
    return Calibration(data=str(tiny_text), size=24, seq_len=64)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(num_hidden_layers=2).bfloat16()
    return save_checkpoint(tmp_path_factory.mktemp("dense") / "model", model)


@pytest.fixture(scope="module")
def quantised(
    dense: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    out, settings = tmp_path_factory.mktemp("quantised") / "out", Quantize(fp8=True, fp8_kv_cache=HAS_CACHE)
    return api.quantize(str(dense), out, settings=settings, calibration=calibration, execution=FLOAT32)


@pytest.fixture(scope="module")
def repaired(
    dense: Path, quantised: ModelArtifact, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    return repair(quantised.path, dense, calibration, tmp_path_factory.mktemp("repaired") / "out")


def repair(
    student: Path, teacher: Path, calibration: Calibration, out: Path, steps: int = 0
) -> ModelArtifact:
    return api.reconstruct(
        str(student), out, teacher=str(teacher), calibration=calibration, steps=steps, execution=FLOAT32
    )


def accepted(made: ModelArtifact) -> set[str]:
    return {name for name, layer in made.details["layers"].items() if layer["accepted"]}


def rounded(values: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """What FP8 leaves of values, by torch's own cast."""
    scale = amax.float() / 448
    return (values.float() / scale).clamp(-448, 448).to(E4M3).float() * scale


def by_modelopt(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a directory's 16-bit weights and maxima in ModelOpt's own fake quantisation."""
    import modelopt.torch.quantization as mtq

    model = load_model(directory, dtype="float32", device="cpu")
    settings, cache = mtq.FP8_DEFAULT_CFG, mtq.FP8_KV_CFG["quant_cfg"]
    rules = settings["quant_cfg"]
    has_cache = any(name.endswith(".k_scale") for name in load_file(directory / UNIFIED / WEIGHTS))
    if has_cache:
        rules = [*rules, *cache] if isinstance(rules, list) else {**rules, **cache}
    mtq.quantize(model, {**settings, "quant_cfg": rules}, lambda model: model(ids))
    for name, value in load_file(directory / AMAX).items():
        module, _, kind = name.rpartition(".")
        what = kind.removesuffix("_amax")
        if what in "kv" and not has_cache:
            continue
        quantizer = f"{what}_bmm_quantizer" if what in "kv" else f"{what}_quantizer"
        getattr(model.get_submodule(module), quantizer).amax = value
    with torch.no_grad():
        return torch.log_softmax(model(ids).logits, -1)


def ids_of(text: Path, directory: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return torch.tensor([tokenizer(text.read_text(encoding="utf-8"))["input_ids"][-512:]])


def in_16_bits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(load_model(directory, dtype="float32", device="cpu")(ids).logits, -1)


def kl(teacher: Path, found: torch.Tensor, ids: torch.Tensor) -> float:
    wanted = in_16_bits(teacher, ids)
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


def test_the_repaired_model_is_nearer_to_the_one_that_was_quantised(
    dense: Path, quantised: ModelArtifact, repaired: ModelArtifact, tiny_text: Path
) -> None:
    ids = ids_of(tiny_text, dense)
    found = {made.path: by_modelopt(made.path, ids) for made in (quantised, repaired)}
    wanted = in_16_bits(dense, ids)
    for path, logits in found.items():
        reader = load_fp8_model(path / UNIFIED, dtype="float32", device="cpu")
        with torch.no_grad():
            own = torch.log_softmax(reader(ids).logits, -1)
        # One last bit moves a value to the next step now and then.
        assert (own - logits).abs().mean() < 0.2 * (logits - wanted).abs().mean()
    assert kl(dense, found[repaired.path], ids) < 0.7 * kl(dense, found[quantised.path], ids)


def test_the_measurement_finds_what_it_keeps_in_the_record(repaired: ModelArtifact) -> None:
    assert set(DETAILS) <= set(repaired.details)


def test_only_accepted_weights_change_and_all_of_them_lie_on_the_grid(
    quantised: ModelArtifact, repaired: ModelArtifact
) -> None:
    given, found = (load_file(made.path / WEIGHTS) for made in (quantised, repaired))
    before, after = (load_file(made.path / AMAX) for made in (quantised, repaired))
    exported = load_file(repaired.path / UNIFIED / WEIGHTS)
    changed = {name for name in given if not torch.equal(given[name], found[name])}
    assert changed == accepted(repaired)
    assert len(changed) == repaired.details["num_accepted"] > 7
    assert {*load_file(quantised.path / UNIFIED / WEIGHTS)} == {*exported}
    for name in changed:
        weight, amax = found[name], after[f"{name}_amax"]
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, rounded(weight, amax).bfloat16()), name
        codes = (weight.float() / (amax / 448)).to(E4M3)
        assert torch.equal(exported[name].view(torch.uint8), codes.view(torch.uint8)), name
        assert exported[f"{name}_scale"].item() == (amax / 448).item()
    for layer in range(2):
        for sharing in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.up_proj", "mlp.gate_proj"),
        ):
            names = [f"model.layers.{layer}.{module}.weight" for module in sharing]
            largest = max(given[name].abs().max().item() for name in names)
            assert max(found[name].abs().max().item() for name in names) == largest
            assert {after[f"{name}_amax"].item() for name in names if name in changed} <= {largest}
    assert set(before) == set(after)
    grown = [name for name in before if "weight" not in name and after[name] > before[name]]
    assert all(after[name] >= before[name] for name in before)
    assert grown
    assert all(
        exported[name].item() == (after[f"{name.removesuffix('_scale')}_amax"] / 448).item()
        for name in exported
        if name.endswith("input_scale")
    )


def test_the_first_layers_errors_by_hand(
    dense: Path, quantised: ModelArtifact, repaired: ModelArtifact, calibration: Calibration
) -> None:
    """Of q, k and v on the sequences to accept: inputs and weights cast, the outputs of 16 bits wanted."""
    windows = calibration_windows(calibration, AutoTokenizer.from_pretrained(dense), seed=0).ids
    accept = [w for number, w in enumerate(windows) if use_of(number, len(windows)) == "accept"]
    ids = torch.stack([torch.from_numpy(window.astype("int64")) for window in accept])
    model = load_model(dense, dtype="float32", device="cpu")
    with torch.no_grad():
        stream = model.model.embed_tokens(ids).flatten(0, 1)
        inputs = model.model.layers[0].input_layernorm(stream)
    size = stream.double().square().mean(1, keepdim=True).sqrt()
    amax = load_file(repaired.path / AMAX)
    for module in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{module}"
        wanted = inputs.double() @ load_file(dense / WEIGHTS)[f"{name}.weight"].double().T
        read = rounded(inputs, amax[f"{name}.input_amax"]).double()
        errors = []
        for made in (repaired, quantised):
            weight, largest = load_file(made.path / WEIGHTS), load_file(made.path / AMAX)
            acting = rounded(weight[f"{name}.weight"], largest[f"{name}.weight_amax"]).double()
            errors.append((((wanted - read @ acting.T) / size).square().sum()).item())
        record = repaired.details["layers"][f"{name}.weight"]
        assert record["accepted"]
        assert errors[0] / errors[1] == pytest.approx(record["error_ratio"], rel=1e-3), name


def test_a_sparse_quantised_model_keeps_its_zeros(
    dense: Path, calibration: Calibration, tiny_text: Path, tmp_path: Path
) -> None:
    """Beside the dense model, it makes up for what was dropped as well."""
    sparse = api.sparsify(
        str(dense),
        tmp_path / "sparse",
        settings=Sparsify(method="magnitude"),
        calibration=calibration,
        execution=FLOAT32,
    )
    fp8 = api.quantize(
        str(sparse.path),
        tmp_path / "fp8",
        settings=Quantize(fp8=True),
        calibration=calibration,
        execution=FLOAT32,
    )
    made = repair(fp8.path, dense, calibration, tmp_path / "out")
    given, found = (load_file(one.path / WEIGHTS) for one in (fp8, made))
    exported = load_file(made.path / UNIFIED / WEIGHTS)
    assert len(accepted(made)) > 7
    for name in accepted(made):
        assert not found[name][given[name] == 0].any(), name
        assert not exported[name].float()[given[name] == 0].any(), name
    ids = ids_of(tiny_text, dense)
    assert kl(dense, by_modelopt(made.path, ids), ids) < 0.9 * kl(dense, by_modelopt(fp8.path, ids), ids)
    assert invoke(["verify", str(made.path), "--source", str(fp8.path)]) == 0


@pytest.mark.parametrize("form", ["huggingface-fp8", "tensorrt-llm-fp8", "onnx-standard-fp8"])
def test_every_format_holds_the_numbers_that_were_judged(
    form: str, repaired: ModelArtifact, tmp_path: Path
) -> None:
    """TensorRT-LLM, whose fused layers share a scale, among them."""
    made = api.export(str(repaired.path), tmp_path / "export", form=form, execution=FLOAT32)
    assert made.details["status"] in ("passed", "reported")
    if form != "tensorrt-llm-fp8":
        return
    exported = load_file(repaired.path / UNIFIED / WEIGHTS)
    with TrtLlmReader(made.path / "checkpoint") as reader:
        for name in accepted(repaired):
            found, wanted = (tensor.view(torch.uint8) for tensor in (reader.stored(name), exported[name]))
            assert torch.equal(found, wanted), name


def test_what_cannot_be_repaired_is_refused(
    dense: Path, quantised: ModelArtifact, repaired: ModelArtifact, calibration: Calibration, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="repaired after it was quantised already"):
        repair(repaired.path, dense, calibration, out)
    with pytest.raises(UsageError, match="own weights are rounded"):
        repair(quantised.path, repaired.path, calibration, out)
    with pytest.raises(UnsupportedError, match="gradient steps cannot train weights that are rounded"):
        repair(quantised.path, dense, calibration, out, steps=5)
    with pytest.raises(UnsupportedError, match="already quantised"):
        repair(quantised.path / UNIFIED, dense, calibration, out)
    with pytest.raises(UsageError, match="too few calibration sequences"):
        repair(quantised.path, dense, calibration.model_copy(update={"size": 2}), out)
    copy = Path(shutil.copytree(quantised.path, tmp_path / "copy"))
    (copy / "artifact.json").unlink()
    with pytest.raises(UsageError, match="no record of how they were made"):
        repair(copy, dense, calibration, out)
    other = save_checkpoint(tmp_path / "other", make_model(num_hidden_layers=3).bfloat16())
    with pytest.raises(UsageError, match="another shape than the quantised model"):
        repair(quantised.path, other, calibration, out)
    renamed = Path(shutil.copytree(dense, tmp_path / "renamed"))
    tokenizer = renamed / "tokenizer.json"
    words = tokenizer.read_text(encoding="utf-8")
    first = max(AutoTokenizer.from_pretrained(dense).get_vocab())
    tokenizer.write_text(words.replace(f'"{first}"', f'"{first}x"'), encoding="utf-8")
    with pytest.raises(UsageError, match="another vocabulary than the quantised model"):
        repair(quantised.path, renamed, calibration, out)
    assert not out.exists()


def edited(file: str, name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        tensors = load_file(directory / file)
        tensors[name] = edit(tensors[name])
        save_file(tensors, directory / file, metadata={"format": "pt"})

    return change


Q = "model.layers.0.self_attn.q_proj"
DAMAGES = {
    "FP8 weight": (edited(f"{UNIFIED}/{WEIGHTS}", f"{Q}.weight", lambda w: (-w.float()).to(E4M3)), Q),
    "maximum of an input": (edited(AMAX, f"{Q}.input_amax", lambda a: a / 2), Q),
    "maximum of a weight": (edited(AMAX, f"{Q}.weight_amax", lambda a: a * 2), Q),
    "16-bit weight": (edited(WEIGHTS, f"{Q}.weight", lambda w: w * 1.01), Q),
    "16-bit norm": (edited(WEIGHTS, "model.norm.weight", lambda w: w * 2), "model.norm"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_faulty_writer_is_found(
    damage: str, quantised: ModelArtifact, repaired: ModelArtifact, tmp_path: Path, capsys: Any
) -> None:
    change, named = DAMAGES[damage]
    copy = Path(shutil.copytree(repaired.path, tmp_path / "copy"))
    change(copy)
    record_again(copy)
    assert invoke(["verify", str(copy), "--source", str(quantised.path)]) == 8
    assert named in capsys.readouterr().err


def test_verify_compares_it_with_its_source(
    quantised: ModelArtifact, repaired: ModelArtifact, capsys: Any
) -> None:
    assert invoke(["verify", str(repaired.path), "--source", str(quantised.path)]) == 0
    assert "compared with its source" in capsys.readouterr().out
