"""What a source may hold: its tensors, its files and what stands in their place."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.core.errors import CompressExportError, UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import HARMLESS, INDEX_FILE, WEIGHTS_FILE, CheckpointReader, is_harmless
from compressor.models.load import load_model
from compressor.models.shapes import expected_shapes
from compressor.models.source import open_checkpoint, plan_dims, resolve_source
from tests.rope_forms import FIRST_WITH_ROPE_PARAMETERS, GENERATION, plain_logits, prompt
from tests.tiny_models import MODEL_TYPES, edit_json, edit_tensors, make_model, save_checkpoint

Tensors = dict[str, torch.Tensor]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def opened(directory: Path, warnings: list[str] | None = None) -> Path:
    found: list[str] = [] if warnings is None else warnings
    source = resolve_source(str(directory))
    return open_checkpoint(source, directory.parent, dtype="float32", on_warning=found.append).path


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.mlp.down_proj.bias",
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.1.block_sparse_moe.gate.weight",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.norm.bias",
        "lm_head.bias",
        "score.weight",
        "model.vision_tower.weight",
        "rope_freqs.weight",
    ],
)
def test_a_tensor_that_no_rule_maps_is_refused_by_name(checkpoint: Path, name: str) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(64)}))

    with pytest.raises(UnsupportedError) as caught:
        opened(checkpoint)
    assert name in str(caught.value)


def test_many_such_tensors_are_counted(checkpoint: Path) -> None:
    extra = {f"model.layers.9.x{index}": torch.ones(1) for index in range(7)}
    edit_tensors(checkpoint, lambda tensors: tensors.update(extra))

    with pytest.raises(UnsupportedError, match=r"x0, model\.layers\.9\.x1, .* and 4 more"):
        opened(checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.cos_cached",
        "model.layers.1.self_attn.masked_bias",
    ],
)
def test_a_harmless_tensor_changes_nothing(checkpoint: Path, name: str) -> None:
    """Plain transformers computes the same with it."""
    expected = plain_logits(checkpoint, prompt())
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.full((8,), 7.0)}))

    assert is_harmless(name)
    assert torch.equal(plain_logits(opened(checkpoint), prompt()), expected)


def test_every_harmless_tensor_has_its_reason() -> None:
    assert all(len(reason) > 10 for reason in HARMLESS.values())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_tensors_of_a_family_are_those_of_its_class(model_type: str, tied: bool, tmp_path: Path) -> None:
    model = make_model(model_type, tie_word_embeddings=tied)
    save_checkpoint(tmp_path / "model", model)

    assert opened(tmp_path / "model") == tmp_path / "model"
    shapes = expected_shapes(plan_dims(str(tmp_path / "model")))
    assert shapes == {name: tuple(value.shape) for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_fp8_and_integers_are_refused_by_name(checkpoint: Path, name: str, dtype: torch.dtype) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))

    with pytest.raises(UnsupportedError) as caught:
        opened(checkpoint)
    assert name in str(caught.value)


def test_mixed_floating_point_is_taken(checkpoint: Path) -> None:
    dtypes = {"model.norm.weight": torch.float64, "model.layers.0.mlp.up_proj.weight": torch.bfloat16}
    edit_tensors(checkpoint, lambda t: t.update({name: t[name].to(dtype) for name, dtype in dtypes.items()}))

    assert opened(checkpoint) == checkpoint


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_a_matrix_of_zeros_is_named_in_a_warning(checkpoint: Path, name: str) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors[name].zero_())
    warnings: list[str] = []
    opened(checkpoint, warnings)

    assert len(warnings) == 1
    assert name in warnings[0]


def test_one_weight_that_is_not_zero_is_enough(checkpoint: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].zero_()[-1, -1] = 1e-8

    edit_tensors(checkpoint, edit)
    warnings: list[str] = []
    opened(checkpoint, warnings)
    assert warnings == []


@pytest.fixture
def sharded(checkpoint: Path) -> Path:
    """The checkpoint in two files with an index, without its single file."""
    tensors = load_file(checkpoint / WEIGHTS_FILE)
    (checkpoint / WEIGHTS_FILE).unlink()
    names = sorted(tensors)
    parts = {FIRST: names[: len(names) // 2], SECOND: names[len(names) // 2 :]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, checkpoint / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (checkpoint / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return checkpoint


def add_to(file: Path, **tensors: torch.Tensor) -> None:
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


def map_of(directory: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / INDEX_FILE).read_text())["weight_map"]
    return found


def test_the_index_is_read_as_transformers_reads_it(sharded: Path, tiny_checkpoint: Path) -> None:
    assert torch.equal(plain_logits(opened(sharded), prompt()), plain_logits(tiny_checkpoint, prompt()))


@pytest.mark.parametrize("into", [FIRST, SECOND])
def test_a_second_copy_of_a_tensor_does_not_win(sharded: Path, into: str) -> None:
    name = next(name for name, file in map_of(sharded).items() if file != into)
    with CheckpointReader(sharded) as reader:
        zeros = torch.zeros_like(reader.tensor(name))
    add_to(sharded / into, **{name: zeros})

    with pytest.raises(VerificationError) as caught:
        opened(sharded)
    assert name in str(caught.value)
    assert into in str(caught.value)


def test_a_tensor_that_the_index_does_not_know(sharded: Path) -> None:
    add_to(sharded / FIRST, **{"model.layers.0.extra": torch.zeros(2)})
    with pytest.raises(VerificationError, match=r"model\.layers\.0\.extra"):
        opened(sharded)


def test_a_harmless_tensor_needs_no_place_in_the_index(sharded: Path) -> None:
    add_to(sharded / FIRST, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    assert opened(sharded) == sharded


def test_a_tensor_that_its_file_lacks(sharded: Path) -> None:
    weights = load_file(sharded / FIRST)
    name = next(iter(weights))
    weights.pop(name)
    save_file(weights, sharded / FIRST, metadata={"format": "pt"})

    with pytest.raises(VerificationError) as caught:
        opened(sharded)
    assert f"{name} in {FIRST}" in str(caught.value)


def test_weights_beside_an_index_of_others(sharded: Path, tiny_checkpoint: Path) -> None:
    shutil.copyfile(tiny_checkpoint / WEIGHTS_FILE, sharded / WEIGHTS_FILE)

    with pytest.raises(VerificationError, match="twice"):
        opened(sharded)


def test_a_foreign_file_beside_the_index_is_not_read(sharded: Path) -> None:
    save_file({"tok_embeddings.weight": torch.zeros(4)}, sharded / "consolidated.safetensors")
    assert opened(sharded) == sharded


@pytest.mark.parametrize("number", [1, 2])
def test_shards_without_an_index(checkpoint: Path, number: int) -> None:
    for shard in range(number):
        file = checkpoint / f"model-0000{shard + 1}-of-0000{number}.safetensors"
        shutil.copyfile(checkpoint / WEIGHTS_FILE, file)
    (checkpoint / WEIGHTS_FILE).unlink()

    with pytest.raises(UsageError, match="index") as caught:
        opened(checkpoint)
    assert "pickled" not in str(caught.value)
    assert ("rename" in str(caught.value)) == (number == 1)


def test_pickled_weights_are_called_pickled(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS_FILE).rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no safetensors weights[\s\S]*pickled"):
        opened(checkpoint)


def test_a_directory_may_be_named_like_a_file(checkpoint: Path) -> None:
    directory = checkpoint.rename(checkpoint.with_name("model.gguf"))
    assert opened(directory) == directory


@pytest.mark.parametrize("whole", [True, False], ids=["with-weights", "alone"])
def test_an_adapter_names_its_base(checkpoint: Path, whole: bool) -> None:
    if not whole:
        (checkpoint / "config.json").unlink()
    text = json.dumps({"base_model_name_or_path": "meta-llama/Llama-3.1-8B"})
    (checkpoint / "adapter_config.json").write_text(text)

    for work in (lambda: opened(checkpoint), lambda: plan_dims(str(checkpoint))):
        with pytest.raises(UnsupportedError, match=r"an adapter of meta-llama/Llama-3\.1-8B"):
            work()


@pytest.mark.parametrize("name", ["config.json", WEIGHTS_FILE, "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "link", "dangling", "loop", "device"])
def test_what_is_no_file_of_the_directory_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, elsewhere = checkpoint / name, tmp_path / "elsewhere"
    if path.exists():
        shutil.move(path, elsewhere)
    else:
        elsewhere.write_text("secret")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(checkpoint)  # a socket's path is short
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "directory":
        path.mkdir()
    else:
        targets = {"link": elsewhere, "dangling": tmp_path / "none", "loop": path}
        path.symlink_to(targets.get(kind, Path("/dev/zero")))

    with pytest.raises(CompressExportError) as caught:
        opened(checkpoint)
    assert caught.value.exit_code == 8
    assert name in str(caught.value)


def test_a_config_of_a_billion_layers_ends_at_once(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", num_hidden_layers=10**9)
    for work in (lambda: opened(checkpoint), lambda: plan_dims(str(checkpoint))):
        with pytest.raises(UnsupportedError, match="num_hidden_layers"):
            work()


@pytest.mark.skipif(GENERATION < FIRST_WITH_ROPE_PARAMETERS, reason="the classes check types since 5")
@pytest.mark.parametrize(("field", "value"), [("use_cache", "yes"), ("initializer_range", 7.0)])
def test_a_class_that_refuses_a_config_gives_the_reason(checkpoint: Path, field: str, value: object) -> None:
    """Of a field that is without effect here."""
    edit_json(checkpoint / "config.json", **{field: value})

    def loaded(directory: Path) -> Any:
        return load_model(directory, dtype="float32", device="cpu")

    for load in (opened, loaded, lambda directory: plan_dims(str(directory))):
        with pytest.raises(UnsupportedError, match=r"refuses this config") as caught:
            load(checkpoint)
        assert field in str(caught.value)
