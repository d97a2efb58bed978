from __future__ import annotations

import itertools
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compressor.core.errors import UsageError, VerificationError
from compressor.models.checkpoint import (
    INDEX_FILE,
    WEIGHTS_FILE,
    CheckpointReader,
    TensorSpec,
    check_finite,
    hash_and_check,
    read_config,
    row_blocks,
    whole,
    write_checkpoint,
    write_safetensors,
)
from compressor.models.load import load_model
from tests.tiny_models import make_model, save_checkpoint

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.uint8, torch.int32, torch.int64),
)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with CheckpointReader(path) as reader:
        return {name: reader.tensor(name).clone() for name in reader}


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (3,), (), (2, 3, 4), (0, 4)], ids=str)
def test_the_library_reads_what_is_written(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = torch.randint(0, 100, shape).to(dtype)
    write_checkpoint(tmp_path, [whole("a", tensor), whole("b.weight", tensor.clone())])

    loaded = load_file(tmp_path / WEIGHTS_FILE)

    assert set(loaded) == {"a", "b.weight"}
    assert all(same_bytes(read, tensor) for read in loaded.values())
    with safe_open(tmp_path / WEIGHTS_FILE, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    written = {"x": torch.randn(4, 6), "y": torch.randn(3).bfloat16()}
    save_file(written, tmp_path / WEIGHTS_FILE)

    with CheckpointReader(tmp_path) as reader:
        assert set(reader) == {"x", "y"}
        assert "x" in reader
        assert "z" not in reader
        assert reader.shape("x") == (4, 6)
        assert same_bytes(reader.tensor("y"), written["y"])


@given(rows=st.integers(1, 50), cuts=st.lists(st.integers(1, 49), max_size=6))
def test_blocks_do_not_show(rows: int, cuts: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    tensor = torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3)
    edges = [0, *sorted(cut for cut in cuts if cut < rows), rows]

    def blocks() -> Iterator[torch.Tensor]:
        yield from (tensor[start:stop] for start, stop in itertools.pairwise(edges))

    folder = tmp_path_factory.mktemp("blocks")
    spec = TensorSpec(name="t", shape=(rows, 3), dtype=torch.float32, blocks=blocks)
    write_safetensors(folder / "blocks", [spec])
    write_safetensors(folder / "whole", [whole("t", tensor)])

    assert (folder / "blocks").read_bytes() == (folder / "whole").read_bytes()


def test_rows_of_a_transposed_view_are_written_as_they_read(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    write_checkpoint(tmp_path, [whole("t", tensor)])

    assert torch.equal(load_file(tmp_path / WEIGHTS_FILE)["t"], tensor)


@pytest.mark.parametrize("max_shard_bytes", [1, 100_000, 10**9])
def test_shards(tiny_checkpoint: Path, tmp_path: Path, max_shard_bytes: int) -> None:
    expected = tensors_of(tiny_checkpoint)
    counted: list[None] = []
    write_checkpoint(
        tmp_path,
        [whole(name, tensor) for name, tensor in expected.items()],
        max_shard_bytes=max_shard_bytes,
        on_tensor=lambda: counted.append(None),
    )

    read = tensors_of(tmp_path)

    assert len(counted) == len(expected)
    assert read.keys() == expected.keys()
    assert all(same_bytes(read[name], expected[name]) for name in expected)
    if (tmp_path / INDEX_FILE).is_file():
        index = json.loads((tmp_path / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
        assert set(index["weight_map"]) == set(expected)
        shards = sorted(tmp_path.glob("model-*.safetensors"))
        assert all(len(load_file(shard)) == 1 for shard in shards) or max_shard_bytes > 1
        assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    else:
        assert max_shard_bytes == 10**9


def test_transformers_reads_shards(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / WEIGHTS_FILE).unlink()
    specs = [whole(name, tensor) for name, tensor in tensors_of(tiny_checkpoint).items()]
    write_checkpoint(tmp_path, specs, max_shard_bytes=100_000)

    model = load_model(tmp_path, dtype="float32", device="cpu")

    for name, tensor in make_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("block", "says"), [(torch.zeros(3, 3), "do not add up"), (torch.zeros(4, 3).half(), "another dtype")]
)
def test_blocks_that_are_not_the_tensor(tmp_path: Path, block: torch.Tensor, says: str) -> None:
    spec = TensorSpec(name="t", shape=(4, 3), dtype=torch.float32, blocks=lambda: (block,))
    with pytest.raises(VerificationError, match=says) as caught:
        write_checkpoint(tmp_path, [spec])
    assert caught.value.where == "t"


@pytest.mark.parametrize("kept", [0, 4, 200, 0.5, 0.999])
def test_truncated_file(checkpoint: Path, kept: float) -> None:
    file = checkpoint / WEIGHTS_FILE
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])

    with pytest.raises(VerificationError, match="truncated or corrupt") as caught:
        hash_and_check(checkpoint)
    assert WEIGHTS_FILE in str(caught.value.where)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_that_are_not_finite(checkpoint: Path, value: float, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(checkpoint).items()}
    bad = "model.layers.2.mlp.down_proj.weight"
    tensors[bad][-1, -1] = value
    write_checkpoint(checkpoint, [whole(name, tensor) for name, tensor in tensors.items()])

    with pytest.raises(VerificationError, match="not finite") as caught:
        hash_and_check(checkpoint)
    assert caught.value.where == bad


def test_integers_and_fp8_are_not_asked_whether_they_are_finite() -> None:
    check_finite("ids", torch.tensor([1, 2]))
    check_finite("fp8", torch.zeros(3).to(torch.float8_e4m3fn))


def test_hash_follows_weights_config_and_tokenizer(checkpoint: Path) -> None:
    seen = {hash_and_check(checkpoint)}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        file = checkpoint / name
        file.write_text(file.read_text() + "\n")
        seen.add(hash_and_check(checkpoint))
    save_checkpoint(checkpoint, make_model(seed=1))
    seen.add(hash_and_check(checkpoint))

    assert len(seen) == 5


def test_hash_follows_what_quantize_writes_beside_equal_weights(checkpoint: Path) -> None:
    seen = {hash_and_check(checkpoint)}
    (checkpoint / "huggingface-fp8").mkdir()
    for name in ("amax.safetensors", "huggingface-fp8/model.safetensors", "huggingface-fp8/config.json"):
        (checkpoint / name).write_text("of one calibration")
        seen.add(hash_and_check(checkpoint))
        (checkpoint / name).write_text("of another calibration")
        seen.add(hash_and_check(checkpoint))

    assert len(seen) == 7


def test_hashing_holds_a_piece_of_a_large_file_beside_the_weights(checkpoint: Path) -> None:
    (checkpoint / "huggingface-fp8").mkdir()
    with (checkpoint / "huggingface-fp8" / "model.safetensors").open("wb") as file:
        file.truncate(1 << 28)
    tracemalloc.start()
    try:
        hash_and_check(checkpoint)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 27


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "index cannot be read"),
        *((content, "index is corrupt") for content in ("[]", "{}", '{"weight_map": 3}')),
        ('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}', "lacks a file"),
        ('{"weight_map": {"x": "../checkpoint/model.safetensors"}}', "elsewhere"),
    ],
)
def test_an_index_that_cannot_be_followed(checkpoint: Path, content: str, says: str) -> None:
    (checkpoint / INDEX_FILE).write_text(content)

    with pytest.raises(VerificationError, match=says):
        CheckpointReader(checkpoint)


def test_missing_tensor(tiny_checkpoint: Path) -> None:
    with (
        CheckpointReader(tiny_checkpoint) as reader,
        pytest.raises(VerificationError, match="lacks a tensor"),
    ):
        reader.tensor("model.layers.9.mlp.up_proj.weight")


def test_config(checkpoint: Path) -> None:
    assert read_config(checkpoint)["model_type"] == "llama"
    for content in ("{", "[]"):
        (checkpoint / "config.json").write_text(content)
        with pytest.raises(VerificationError, match=r"config\.json"):
            read_config(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(UsageError, match="holds no Hugging Face checkpoint"):
        read_config(checkpoint)


@given(rows=st.integers(0, 20), columns=st.integers(0, 5))
def test_row_blocks_cover_the_tensor(rows: int, columns: int) -> None:
    tensor = torch.arange(float(rows * columns)).reshape(rows, columns)

    assert torch.equal(torch.cat(list(row_blocks(tensor))), tensor)
