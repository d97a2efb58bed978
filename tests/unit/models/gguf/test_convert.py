"""What a GGUF file holds is read, or refused by name: fields, tensors, types, sizes."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.cli.main import invoke
from compressor.core.errors import CompressExportError, UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.gguf.convert import convert_gguf, gguf_dims
from compressor.models.gguf.header import read_header
from compressor.models.source import resolve_source
from tests.gguf_files import TinyGguf, llama3_factors
from tests.unit.models.config.published import LLAMA_3_1_ROPE

LLAMA3 = {**LLAMA_3_1_ROPE, "factor": 32.0}


def ones(*shape: int) -> Any:
    return np.ones(shape, dtype=np.float32)


def refuses(path: Path, *, error: type[CompressExportError] = UnsupportedError, says: str) -> None:
    with pytest.raises(error) as caught:
        gguf_dims(path)
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_transformers_converter(kind: str, dtype: str, tmp_path: Path) -> None:
    """Where that one is right (a plain llama), every bit is the same."""
    path = TinyGguf(kind=kind, head_dim=32, tied=False).write(tmp_path / "model.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=getattr(torch, dtype), local_files_only=True
    ).state_dict()
    with CheckpointReader(convert_gguf(path, tmp_path / "scratch", dtype)) as ours:
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours.tensor(name), theirs[name]) for name in ours)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "nemotron"])
def test_weights_are_those_that_were_written(architecture: str, tmp_path: Path) -> None:
    model = TinyGguf(architecture=architecture, head_dim=32, tied=False)
    directory = convert_gguf(model.write(tmp_path / "model.gguf"), tmp_path, "float32")
    with CheckpointReader(directory) as reader:
        written = model.weights()
        assert set(reader) == set(written)
        for name, values in written.items():
            # Nemotron's norms are stored plus one, which costs a bit.
            assert np.allclose(reader.tensor(name).numpy(), values, rtol=0, atol=2e-7), name


@pytest.mark.parametrize(
    ("original", "head_dim", "theta"),
    [
        (LLAMA3, 64, 500_000.0),
        ({**LLAMA3, "factor": 8.0}, 128, 500_000.0),
        ({**LLAMA3, "factor": 8.0}, 16, 500_000.0),
        ({**LLAMA3, "factor": 4.0, "original_max_position_embeddings": 2048}, 80, 10_000.0),
        ({**LLAMA3, "high_freq_factor": 7.0, "original_max_position_embeddings": 3000}, 128, 1e6),
    ],
)
def test_llama3_parameters_are_found_again(
    original: dict[str, Any], head_dim: int, theta: float, tmp_path: Path
) -> None:
    """Checked by what the found parameters give, in the writer's own arithmetic."""
    model = TinyGguf(rope=original, head_dim=head_dim, rope_theta=theta, num_layers=1)
    config = read_config(convert_gguf(model.write(tmp_path / "model.gguf"), tmp_path, "float32"))
    found = config["rope_scaling"]
    assert found["rope_type"] == "llama3"
    expected = llama3_factors(original, theta, head_dim)
    assert np.allclose(llama3_factors(found, theta, head_dim), expected, rtol=2e-5, atol=0)
    if {**original, "factor": 32.0} == LLAMA3 and head_dim >= 64:
        assert found == original


def test_factors_that_are_all_the_same_are_linear(tmp_path: Path) -> None:
    for number, factor in enumerate((1.0, 3.0)):
        extra = {"rope_freqs.weight": np.full(8, factor, dtype=np.float32)}
        path = TinyGguf(extra=extra, num_layers=1).write(tmp_path / f"{number}.gguf")
        scaling = read_config(convert_gguf(path, tmp_path, "float32")).get("rope_scaling")
        assert scaling == (None if factor == 1.0 else {"rope_type": "linear", "factor": 3.0})


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (TinyGguf(extra={"rope_freqs.weight": ones(8) * np.arange(1, 9, dtype=np.float32)}), "rope_freqs"),
        (TinyGguf(architecture="qwen2", extra={"rope_freqs.weight": ones(8)}), "rope_freqs.weight"),
        (TinyGguf(extra={"rope_freqs.weight": ones(4)}), "rope_freqs.weight"),
        (
            TinyGguf(rope=LLAMA3, fields={"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}),
            "rope.scaling",
        ),
        (TinyGguf(fields={"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}), "rope.scaling.type"),
        (TinyGguf(fields={"rope.scaling.attn_factor": 1.2}), "rope.scaling.attn_factor"),
        (TinyGguf(fields={"rope.freq_base": np.float64(1e300)}), "rope.freq_base"),
        (TinyGguf(fields={"rope.freq_base": np.float64(1e-300)}), "rope.freq_base"),
        (
            TinyGguf(fields={"rope.scaling.type": "yarn", "rope.scaling.factor": np.float64(1e300)}),
            "rope.scaling.factor",
        ),
        (TinyGguf(fields={"rope.dimension_count": 8}), "rope.dimension_count"),
        (TinyGguf(architecture="qwen3", fields={"rope.dimension_count": 8}), "rope.dimension_count"),
        (TinyGguf(fields={"attention.value_length": 32}), "attention.value_length"),
        (TinyGguf(fields={"attention.sliding_window": 1024}), "attention.sliding_window"),
        (TinyGguf(architecture="qwen2", fields={"attention.sliding_window": 8}), "attention.sliding_window"),
        (TinyGguf(fields={"attention.scale": 0.5}), "attention.scale"),
        (TinyGguf(fields={"logit_scale": 8.0}), "logit_scale"),
        (TinyGguf(fields={"embedding_scale": 12.0}), "embedding_scale"),
        (TinyGguf(fields={"residual_scale": 0.22}), "residual_scale"),
        (TinyGguf(fields={"expert_count": 8}), "expert_count"),
        (TinyGguf(fields={"attention.causal": False}), "attention.causal"),
        (TinyGguf(fields={"something.new": 3}), "something.new"),
        (TinyGguf(fields={"attention.head_count_kv": [2, 4]}), "attention.head_count_kv"),
        (TinyGguf(biases=("self_attn.o_proj",)), "blk.0.attn_output.bias"),
        (TinyGguf(biases=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")), "blk.0.attn_q.bias"),
        (TinyGguf(biases=("mlp.down_proj",)), "blk.1.ffn_down.bias"),
        (TinyGguf(architecture="qwen2", biases=("self_attn.o_proj",)), "blk.0.attn_output.bias"),
        (TinyGguf(extra={"blk.0.ffn_gate_exps.weight": ones(4, 96, 64)}), "blk.0.ffn_gate_exps.weight"),
        (TinyGguf(architecture="qwen3", extra={"blk.2.attn_q.weight": ones(64, 64)}), "blk.2.attn_q.weight"),
        (TinyGguf(extra={"blk.0.attn_qkv.weight": ones(128, 64)}), "blk.0.attn_qkv.weight"),
    ],
)
def test_what_no_model_here_has_is_refused_by_name(model: TinyGguf, says: str, tmp_path: Path) -> None:
    refuses(model.write(tmp_path / "model.gguf"), says=says)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention.sliding_window": 4096, "expert_count": 0, "attention.causal": True},
        {"logit_scale": 1.0, "attention.scale": 0.25, "rope.scaling.finetuned": False},
        {"rope.scaling.type": "none", "tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_fields_that_change_nothing_are_accepted(fields: dict[str, Any], tmp_path: Path) -> None:
    assert gguf_dims(TinyGguf(fields=fields).write(tmp_path / "model.gguf")).hidden_size == 64


@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_a_type_without_a_dequantisation_is_named(dtype: type, tmp_path: Path) -> None:
    class Integers(TinyGguf):
        def _stored(self) -> dict[str, Any]:
            return {name: values for name, values in super()._stored().items() if name != "output.weight"}

    model = Integers(tied=False, extra={"output.weight": np.ones((TinyGguf().vocab_size, 64), dtype=dtype)})
    with pytest.raises(UnsupportedError, match=r"output\.weight"):
        convert_gguf(model.write(tmp_path / "model.gguf"), tmp_path, "float32")


@pytest.mark.parametrize("where", ["nan", "lacking", "another-shape"])
def test_weights_that_cannot_be_right(where: str, tmp_path: Path) -> None:
    class Broken(TinyGguf):
        def _stored(self) -> dict[str, Any]:
            stored = super()._stored()
            up = stored.pop("blk.1.ffn_up.weight").copy()
            if where == "nan":
                up[3, 3] = np.nan
            if where != "lacking":
                stored["blk.1.ffn_up.weight"] = up[:-8] if where == "another-shape" else up
            return stored

    with pytest.raises(VerificationError, match=r"blk\.1\.ffn_up\.weight"):
        convert_gguf(Broken().write(tmp_path / "model.gguf"), tmp_path / "scratch", "float32")
    assert not [path for path in (tmp_path / "scratch").glob("model-*") if path.suffix != ".partial"]


def test_absurd_sizes_are_bounded(tmp_path: Path) -> None:
    refuses(
        TinyGguf(fields={"block_count": 1_000_000_000}).write(tmp_path / "layers.gguf"),
        error=VerificationError,
        says="1,000,000,000 layers",
    )
    for number, counts in enumerate([(1 << 60, 0), (0, 1 << 60), (1 << 40, 1 << 40)]):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts))
        refuses(path, error=VerificationError, says="truncated or corrupt")
    listed = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 50)
    (tmp_path / "list.gguf").write_bytes(listed)
    refuses(tmp_path / "list.gguf", error=VerificationError, says="items of one list")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_truncated_file(kept: float, tmp_path: Path) -> None:
    path = TinyGguf().write(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    refuses(path, error=VerificationError, says="truncated or corrupt")


def test_one_part_of_a_split_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.add_tensor("output_norm.weight", ones(4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuses(tmp_path / "part.gguf", says="part 2 of 3")


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    if kind == "directory":
        path.mkdir()
        assert resolve_source(str(path)).kind == "directory"
    else:
        os.mkfifo(path)
        with pytest.raises(UsageError, match="is a FIFO"):
            resolve_source(str(path))
    with pytest.raises(UsageError, match="it is"):
        gguf_dims(path)
    assert invoke(["plan", str(path), "--target", "50%"]) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_the_header_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    fields = {"a": 7, "b": -3.5, "c": "text", "d": [1, 2, 3], "e": True, "f": ["x", "yz"]}
    path = TinyGguf(kind="Q8_0", tokenizer_fields=fields, head_dim=32).write(tmp_path / "model.gguf")
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.fields[name] == field.contents(), name
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.kind, mine.offset, mine.num_bytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))


def test_generation_ends_at_every_end_token(tmp_path: Path) -> None:
    ends = {"ggml.eot_token_id": 3, "ggml.eom_token_id": 4}
    path = TinyGguf(tokenizer_fields=ends).write(tmp_path / "model.gguf")
    directory = convert_gguf(path, tmp_path, "float32")
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == [2, 3, 4]
    assert read_config(directory)["eos_token_id"] == 2
