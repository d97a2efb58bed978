"""The sparsify stage on a tiny model: exact pattern, the methods' own order, what stays dense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from compressor.calibration.sequential import Gram
from compressor.choices.sparsity import SPARSITY_METHODS, SparsityMethod
from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import Pattern
from compressor.models.sparse.record import MASKS_FILE, SPARSITY_FILE, read_masks, read_sparsity
from compressor.recipe.recipe import Sparsify
from compressor.sparsity.method import Choice, OneShotSettings
from exporters.verification.verify import verify_directory
from tests.records import record_again
from tests.unit.sparsity.conftest import Sparsified, artifact_of

METHODS = [name for name, row in SPARSITY_METHODS.items() if not row.trains]


def keep_even_columns(weight: torch.Tensor, _inputs: Gram, _settings: OneShotSettings) -> Choice:
    return Choice(keep_mask=torch.arange(weight.shape[1]).remainder(2).eq(0).expand_as(weight))


def test_a_method_is_one_function_and_one_row(
    sparsified: Sparsified, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = SparsityMethod(name="even", help="Keeps even columns.", code=f"{__name__}:keep_even_columns")
    monkeypatch.setitem(SPARSITY_METHODS, row.name, row)
    made = sparsified.make(method="even")
    weight = load_file(made.path / WEIGHTS_FILE)["model.layers.1.mlp.up_proj.weight"]
    assert weight[:, 1::2].abs().max() == 0
    assert (weight[:, ::2] != 0).all()
    assert made.details["method"] == "even"
    verify_directory(made.path)
    with pytest.raises(ValidationError, match="one of magnitude, wanda"):
        Sparsify(method="odd")


@pytest.mark.parametrize("method", METHODS)
def test_every_linear_layer_is_exactly_half_and_the_rest_is_untouched(
    sparsified: Sparsified, method: str
) -> None:
    made = sparsified.make(method=method)
    before, after = load_file(sparsified.dense / WEIGHTS_FILE), load_file(made.path / WEIGHTS_FILE)
    sparsity = read_sparsity(made.path)
    assert sparsity is not None
    assert len(sparsity.shapes) == 21
    masks = read_masks(made.path / MASKS_FILE, sparsity.shapes)
    for name, weight in after.items():
        if name not in sparsity.shapes:
            assert torch.equal(weight, before[name]), name
            continue
        groups = (weight != 0).unflatten(-1, (-1, 4)).sum(-1)
        assert torch.equal(groups, torch.full_like(groups, 2)), name
        assert torch.equal(weight != 0, masks[name])
    assert verify_directory(made.path).checked[0].found["sparsity"] == {"pattern": "2:4", "num_tensors": 21}
    assert made.details["density"] == 0.5


def test_magnitude_keeps_what_it_keeps_as_it_was(sparsified: Sparsified) -> None:
    before = load_file(sparsified.dense / WEIGHTS_FILE)
    after = load_file(sparsified.make(method="magnitude").path / WEIGHTS_FILE)
    name = "model.layers.2.mlp.gate_proj.weight"
    assert torch.equal(after[name], before[name] * keep_mask(before[name].abs()))


def test_errors_fall_in_the_published_order(sparsified: Sparsified) -> None:
    """Summed over the first layer, whose inputs no method has changed yet."""

    def error(method: str, **settings: bool) -> float:
        layers = sparsified.make(method=method, **settings).details["layers"]
        return sum(layer["relative_error"] for name, layer in layers.items() if ".layers.0." in name)

    assert error("sparsegpt") < error("wanda") < error("magnitude")
    assert error("sparsegpt") < error("sparsegpt", update_weights=False)


def test_relative_error_is_that_of_the_outputs(sparsified: Sparsified) -> None:
    from compressor.data.calibration import calibration_windows
    from compressor.models.load import load_model
    from compressor.models.tokenizer import load_tokenizer

    made = sparsified.make(method="wanda")
    before, after = load_file(sparsified.dense / WEIGHTS_FILE), load_file(made.path / WEIGHTS_FILE)
    name = "model.layers.0.self_attn.q_proj"
    inputs = []
    model = load_model(sparsified.dense, dtype="float32", device="cpu")
    model.get_submodule(name).register_forward_pre_hook(lambda _m, args: inputs.append(args[0][0].double()))
    calibration = sparsified.calibration
    tokenizer = load_tokenizer(sparsified.dense)
    for window in calibration_windows(calibration, tokenizer, seed=0).ids:
        model(torch.from_numpy(window.astype("int64"))[None])
    x = torch.cat(inputs)
    dense, sparse = (state[f"{name}.weight"].double() for state in (before, after))
    expected = ((x @ (sparse - dense).T).square().sum() / (x @ dense.T).square().sum()).item()
    assert made.details["layers"][f"{name}.weight"]["relative_error"] == pytest.approx(expected, rel=1e-4)


def test_the_skip_list_leaves_tensors_dense(sparsified: Sparsified) -> None:
    made = sparsified.make(method="magnitude", skip=("*.k_proj.*", "model.layers.0.*"))
    sparsity = read_sparsity(made.path)
    assert sparsity is not None
    assert len(sparsity.shapes) == 12
    before, after = load_file(sparsified.dense / WEIGHTS_FILE), load_file(made.path / WEIGHTS_FILE)
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(before[name], after[name])


def test_bfloat16_is_sparse_too(sparsified: Sparsified) -> None:
    made = sparsified.make(dtype="bfloat16", method="sparsegpt")
    weight = load_file(made.path / WEIGHTS_FILE)["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.bfloat16
    assert json.loads((made.path / "config.json").read_text())["dtype"] == "bfloat16"
    verify_directory(made.path)


def test_a_planted_third_nonzero_is_caught(sparsified: Sparsified, tmp_path: Path) -> None:
    made = sparsified.copy(tmp_path)
    tensors, name = load_file(made / WEIGHTS_FILE), "model.layers.1.self_attn.o_proj.weight"
    row = tensors[name][5]
    row[(row[:4] == 0).nonzero()[0]] = 1e-3
    save_file(tensors, made / WEIGHTS_FILE, metadata={"format": "pt"})
    record_again(made)
    with pytest.raises(VerificationError, match=r"layers\.1\.self_attn\.o_proj\.weight\[5, 0:4\]"):
        verify_directory(made)


def test_a_pattern_may_be_demanded_of_any_checkpoint(sparsified: Sparsified) -> None:
    with pytest.raises(VerificationError, match="must be 2:4"):
        verify_directory(sparsified.dense, pattern=Pattern())
    made = sparsified.make(method="wanda")
    assert verify_directory(made.path, pattern=Pattern()).checked[0].found["sparsity"]["num_tensors"] == 21


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"pattern": "2:4", "skip": ("*",)}, UsageError, "leaves nothing"),
        ({"pattern": "2:5"}, UnsupportedError, "groups of 5"),
        ({"pattern": None}, UsageError, "not a sparsity pattern"),
    ],
)
def test_what_cannot_be_sparsified_is_refused(
    sparsified: Sparsified, tmp_path: Path, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sparsified.run(artifact_of(sparsified.dense), tmp_path / "out", **settings)


@pytest.mark.parametrize("has_masks", [True, False])
def test_a_sparse_checkpoint_is_not_sparsified_again(
    sparsified: Sparsified, tmp_path: Path, has_masks: bool
) -> None:
    """An export of one carries the record, but no masks."""
    made = sparsified.copy(tmp_path)
    if not has_masks:
        (made / MASKS_FILE).unlink()
    with pytest.raises(UnsupportedError, match="sparse already"):
        sparsified.run(artifact_of(made), tmp_path / "out")


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_not_finite_is_named(sparsified: Sparsified, tmp_path: Path, method: str) -> None:
    """In the last matrix, whose outputs no later statistic would show."""
    dense = Path(shutil.copytree(sparsified.dense, tmp_path / "dense"))
    tensors, name = load_file(dense / WEIGHTS_FILE), "model.layers.2.mlp.down_proj.weight"
    tensors[name][3, 5] = float("nan")
    save_file(tensors, dense / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=r"layers\.2\.mlp\.down_proj"):
        sparsified.run(artifact_of(dense), tmp_path / "out", method=method)


def test_a_corrupt_record_is_caught(sparsified: Sparsified, tmp_path: Path) -> None:
    made = sparsified.copy(tmp_path)
    (made / SPARSITY_FILE).write_text('{"pattern": "2:4", "tensors": 3}')
    record_again(made)
    with pytest.raises(VerificationError, match="sparsity record is corrupt"):
        verify_directory(made)
