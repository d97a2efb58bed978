"""Records of ours that somebody edited: an error of ours with its exit code, whatever was put where."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import CompressExportError, UnsupportedError, UsageError, VerificationError
from compressor.distillation.stored_logits import INDEX_FILE, StoredLogits
from compressor.models.checkpoint import weight_files
from compressor.models.sparse.low_rank import ADAPTER_CONFIG, ADAPTER_DIRECTORY, read_adapter
from compressor.models.sparse.record import SPARSITY_FILE, read_sparsity
from compressor.pruning.plan import PLAN_FILE, read_plan
from exporters.verification.record import VERIFICATION_FILE, read_verification
from tests.integration.command import command_here

INSTEAD: tuple[Any, ...] = (None, True, -1, 10**30, 1.5, "x", "", [], [[1]], {}, {"a": None})


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory of each kind that leaves a record of its own."""
    here = tmp_path_factory.mktemp("made")
    text = ("--calib-data", tiny_text, "--calib-seq-len", 64, "--calib-size", 2)
    shape = ("--shape", "hidden_size=48", "--importance", "random")
    training = ("--train-data", tiny_text, "--tokens", 640, "--context-length", 64, "--top-k", 8)
    commands = {
        "pruned": ("prune", tiny_checkpoint, *shape),
        "sparse": ("sparsify", tiny_checkpoint, "--slorb", "fixed", *text),
        "logits": ("cache-logits", tiny_checkpoint, *training),
        "exported": ("export", tiny_checkpoint, "--format", "tensorrt-llm"),
    }
    for name, words in commands.items():
        done = command_here(*words, "-o", here / name)
        assert done.returncode == 0, done.stderr
    return here


def edited(value: Any) -> Iterator[Any]:
    """The record with each of its parts replaced by something else, removed, or with a stranger beside it."""
    yield from INSTEAD
    for path in list(paths(value)):
        for instead in INSTEAD:
            yield changed(value, path, lambda node, leaf, new=instead: node.__setitem__(leaf, new))
        yield changed(value, path, lambda node, leaf: node.__delitem__(leaf))
    if isinstance(value, dict):
        yield {**value, "stranger": 1}


def paths(value: Any, *, depth: int = 3) -> Iterator[tuple[Any, ...]]:
    """Ways to the parts of a record; of long lists and mappings, to the first parts."""
    if depth and isinstance(value, dict | list):
        for key in list(value if isinstance(value, dict) else range(len(value)))[:12]:
            yield (key,)
            yield from ((key, *rest) for rest in list(paths(value[key], depth=depth - 1))[:6])


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    result = copy.deepcopy(value)
    node = result
    for key in path[:-1]:
        node = node[key]
    change(node, path[-1])
    return result


READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "sparsity": ("sparse", SPARSITY_FILE, read_sparsity),
    "adapter": ("sparse", f"{ADAPTER_DIRECTORY}/{ADAPTER_CONFIG}", read_adapter),
    "plan": ("pruned", PLAN_FILE, lambda path: read_plan(path / PLAN_FILE)),
    "stored logits": ("logits", INDEX_FILE, StoredLogits),
    "verification": ("exported", VERIFICATION_FILE, read_verification),
}


@pytest.mark.parametrize("name", READERS)
def test_no_edit_of_a_record_raises_anything_but_an_error_of_ours(
    made: Path, tmp_path: Path, name: str
) -> None:
    directory, file, read = READERS[name]
    copied = Path(shutil.copytree(made / directory, tmp_path / "copy"))
    record = json.loads((copied / file).read_text())
    num_refused = num_tried = 0
    for edit in edited(record):
        (copied / file).write_text(json.dumps(edit))
        num_tried += 1
        try:
            read(copied)
        except (UsageError, UnsupportedError, VerificationError):
            num_refused += 1
    assert num_refused >= len(INSTEAD)
    assert num_tried > 10 * len(INSTEAD)


BROKEN = {
    "cut off": b'{"a": ',
    "not UTF-8": b"\xff\xfe{}",
    "not finite": b'{"a": NaN}',
    "deep": b"[" * 99_999,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_a_broken_record_is_named(made: Path, tmp_path: Path, name: str, content: bytes) -> None:
    directory, file, read = READERS[name]
    copied = Path(shutil.copytree(made / directory, tmp_path / "copy"))
    (copied / file).write_bytes(content)
    with pytest.raises(CompressExportError) as caught:
        read(copied)
    assert Path(file).name in str(caught.value)


@pytest.mark.parametrize("value", [*INSTEAD, {"stage": 3}, {"config": []}], ids=str)
def test_an_edited_record_of_an_unfinished_stage_ends_in_one_message(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, value: Any
) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "stage.json").write_text(json.dumps(value))
    words = ("generate", tiny_checkpoint, "--tokens", 10, "--prompts", tiny_text, "-o", tmp_path / "out")
    done = command_here(*words)
    assert done.returncode in (2, 8), done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize("value", [*INSTEAD, {"num_batches": -1}, {"num_bytes": "9"}, {"more": 1}], ids=str)
def test_an_edited_progress_of_sampling_ends_in_one_message(tmp_path: Path, value: Any) -> None:
    from compressor.distillation import generate_stage as generate

    (tmp_path / generate.PROGRESS_FILE).write_text(json.dumps(value))
    with pytest.raises(CompressExportError) as caught:
        generate._read_progress(tmp_path)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("name", ["artifact.json", "verification.json"])
@pytest.mark.parametrize("value", [[], {}, "x", {"schema": "compress-export/artifact/1"}], ids=str)
def test_an_edited_record_is_refused_by_verify(made: Path, tmp_path: Path, name: str, value: Any) -> None:
    copied = Path(shutil.copytree(made / "exported", tmp_path / "copy"))
    (copied / name).write_text(json.dumps(value))
    done = command_here("verify", copied)
    assert done.returncode in (2, 8), done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize(
    "value", [*INSTEAD, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../x"}}], ids=str
)
def test_an_edited_index_of_weights_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(value))
    with pytest.raises(CompressExportError) as caught:
        weight_files(tmp_path)
    assert caught.value.exit_code == 8
