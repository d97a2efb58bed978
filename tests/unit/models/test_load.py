from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from compressor.core.errors import NetworkError, UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.models.dims import num_parameters
from compressor.models.gguf import convert as gguf_module
from compressor.models.gguf.convert import convert_gguf
from compressor.models.load import load_model
from compressor.models.presets import PRESETS
from compressor.models.source import open_checkpoint, plan_dims, resolve_source, short_name, source_dims
from compressor.runs.artifact import record_files
from tests.gguf_files import TinyGguf
from tests.tiny_models import edit_json, edit_tensors, make_model, save_checkpoint

Edit = Callable[[dict[str, Any]], Any]


def test_alias() -> None:
    source = resolve_source("llama3.1-8b")

    assert (source.kind, source.location) == ("hub", "meta-llama/Llama-3.1-8B")


@pytest.mark.parametrize("model", ["llama3.1-8b", "meta-llama/Llama-3.1-8B", "nemotron4-15b"])
def test_published_models_are_planned_without_network(model: str) -> None:
    preset = next(preset for preset in PRESETS.values() if model in (preset.alias, preset.hub_id))

    assert plan_dims(model) == preset.dims


def test_local_models_are_planned_from_their_config(tiny_checkpoint: Path) -> None:
    assert plan_dims(str(tiny_checkpoint)).intermediate_size == 192


@pytest.mark.parametrize(
    ("model", "name"),
    [("llama3.1-8b", "llama3.1-8b"), ("org/Name-1.5B", "Name-1.5B"), ("a/b/X.Q4_1.gguf", "x.q4_1")],
)
def test_short_names(model: str, name: str) -> None:
    assert short_name(model) == name


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("llama3.1-8B", r"no known alias[\s\S]*llama3\.1-8b"),
        ("llama31-8b", r"no known alias[\s\S]*llama3\.1-8b"),
        ("smolm2", r"no known alias[\s\S]*smollm2"),
        ("zzzzzzzz", r"llama3\.1-8b, 4b-width"),
        *((path, "does not exist") for path in ("./none", "/none/at/all", "~/none/at/all", "a/b/c")),
        *((path, "does not exist") for path in ("none.gguf", "./x.gguf")),
        (__file__, "no model"),
    ],
)
def test_what_is_no_model_is_answered_with_the_nearest(model: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve_source(model)


def test_alias_without_weights() -> None:
    with pytest.raises(UnsupportedError, match="only be planned"):
        resolve_source("nemotron4-15b")


def test_directory_named_like_a_hub_id(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent.parent)

    assert resolve_source(f"{checkpoint.parent.name}/checkpoint").kind == "directory"
    assert resolve_source("someone/checkpoint").kind == "hub"


def test_hub_model_without_network() -> None:
    source = resolve_source("someone/some-model")

    with pytest.raises(NetworkError, match="cannot be downloaded"):
        source_dims(source)


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no Hugging Face checkpoint"):
        open_checkpoint(resolve_source(str(tmp_path)), tmp_path, dtype="float32")


def test_checkpoint_is_opened_where_it_is(any_checkpoint: Path, tmp_path: Path) -> None:
    artifact = open_checkpoint(resolve_source(str(any_checkpoint)), tmp_path / "scratch", dtype="float32")

    assert artifact.path == any_checkpoint
    assert artifact.lineage == ("source",)
    assert artifact.num_parameters == num_parameters(source_dims(resolve_source(str(any_checkpoint))))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("name", ["quantization_config", "hf_quant_config.json"])
def test_quantised_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    if name == "quantization_config":
        edit_json(checkpoint / "config.json", quantization_config={"quant_method": "fp8"})
    else:
        (checkpoint / name).write_text("{}")
    source = resolve_source(str(checkpoint))

    with pytest.raises(UnsupportedError, match="already quantised"):
        source_dims(source)
    with pytest.raises(UnsupportedError, match="already quantised"):
        open_checkpoint(source, tmp_path, dtype="float32")


@pytest.mark.parametrize(
    ("stated", "method"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ({"bits": 4}, "not said"),
    ],
)
def test_the_method_of_a_quantised_checkpoint_is_named(
    checkpoint: Path, stated: dict[str, Any], method: str
) -> None:
    edit_json(checkpoint / "config.json", quantization_config=stated)
    with pytest.raises(UnsupportedError, match=f"already quantised[\\s\\S]*{method}"):
        source_dims(resolve_source(str(checkpoint)))


def test_unsupported_model_type(checkpoint: Path, tmp_path: Path) -> None:
    edit_json(checkpoint / "config.json", model_type="mamba")

    with pytest.raises(UnsupportedError, match="'mamba' is not supported"):
        open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")


def test_loaded_model_is_the_saved_one(any_checkpoint: Path) -> None:
    model = load_model(any_checkpoint, dtype="float32", device="cpu")
    expected = make_model(tie_word_embeddings=model.config.tie_word_embeddings)
    ids = torch.arange(40).reshape(2, 20)

    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def without(name: str) -> Edit:
    return lambda tensors: tensors.pop(name)


def with_extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def with_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(64, 128)


def with_another_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


@pytest.mark.parametrize(
    ("edit", "opening", "loading"),
    [
        (without("model.layers.1.mlp.down_proj.weight"), "lacks a tensor", "does not fit"),
        (with_another_shape, "not the shape", "checkpoint"),
        (with_another_head, "ties the embeddings", None),
        (with_extra, None, "does not fit"),
    ],
)
def test_weights_that_do_not_fit_the_config(
    checkpoint: Path, tmp_path: Path, edit: Edit, opening: str | None, loading: str | None
) -> None:
    edit_tensors(checkpoint, edit)

    if opening is not None:
        with pytest.raises(VerificationError, match=opening):
            open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")
    if loading is not None:
        with pytest.raises(VerificationError, match=loading):
            load_model(checkpoint, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *((text, "truncated or corrupt") for text in (b"", b"GGUF", b"not a gguf file at all, by any means")),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), r"general\.architecture"),
    ],
)
def test_corrupt_gguf(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    with pytest.raises(VerificationError, match=says):
        source_dims(resolve_source(str(path)))


@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [("llama", VerificationError, "llama.embedding_length"), ("clip", UnsupportedError, "'clip'")],
)
def test_gguf_that_is_no_whole_language_model(
    tmp_path: Path, architecture: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    with pytest.raises(error, match=message):
        source_dims(resolve_source(str(path)))


def test_artifacts_keep_their_lineage(checkpoint: Path, tmp_path: Path) -> None:
    artifact = open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")
    made = replace(artifact, stage="prune", lineage=("source", "prune"), texts=("t",))
    replace(made, files=record_files(checkpoint)).write()

    again = open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")

    assert (again.stage, again.lineage, again.texts) == ("prune", ("source", "prune"), ("t",))
    assert again.fingerprint == artifact.fingerprint


def test_float16_and_bfloat16_are_loaded_as_asked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_model().bfloat16())

    for dtype in ("float32", "bfloat16"):
        assert load_model(tmp_path, dtype=dtype, device="cpu").dtype == getattr(torch, dtype)


def test_a_gguf_that_two_commands_want_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first; without the lock it would remove what the first is writing."""
    converted: list[Path] = []
    convert = gguf_module._convert

    def slowly(path: Path, out_dir: Path, *others: Any) -> None:
        convert(path, out_dir, *others)
        time.sleep(0.3)
        converted.append(out_dir)

    monkeypatch.setattr(gguf_module, "_convert", slowly)
    source = TinyGguf().write(tmp_path / "model.gguf")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: convert_gguf(source, tmp_path / "scratch", "bfloat16"), range(2)))
    assert len(converted) == 1
    assert [(path / "config.json").is_file() for path in found] == [True, True]
    assert found[0] == found[1]


def test_a_published_student_has_more_files_than_its_record(checkpoint: Path, tmp_path: Path) -> None:
    """A page and attributes of a hub are no alteration; an edited weight file is one."""
    artifact = open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")
    replace(artifact, files=record_files(checkpoint)).write()
    (checkpoint / "README.md").write_text("A student.\n")
    (checkpoint / ".gitattributes").write_text("*.safetensors filter=lfs\n")

    again = open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")
    assert again.fingerprint == artifact.fingerprint

    edit_tensors(checkpoint, lambda tensors: tensors["model.norm.weight"].add_(1))
    with pytest.raises(VerificationError, match="finished work has") as caught:
        open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")
    assert WEIGHTS_FILE in str(caught.value)


def test_a_student_without_a_recorded_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    artifact = open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")
    (checkpoint / "masks.safetensors").write_bytes(b"")
    replace(artifact, files=record_files(checkpoint)).write()
    (checkpoint / "masks.safetensors").unlink()

    with pytest.raises(VerificationError, match="is missing"):
        open_checkpoint(resolve_source(str(checkpoint)), tmp_path, dtype="float32")


@pytest.mark.parametrize("content", ["[]", "3", '{"max_length": []}', '{"eos_token_id": {"a": 1}}'])
def test_generation_settings_that_no_class_takes_are_named_or_unused(content: str, tmp_path: Path) -> None:
    """Never an error of the library itself."""
    path = save_checkpoint(tmp_path / "model", make_model())
    (path / "generation_config.json").write_text(content)
    with contextlib.suppress(VerificationError):
        load_model(path, dtype="float32", device="cpu")
