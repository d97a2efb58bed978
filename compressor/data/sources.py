"""Text by name: a hub data set, or a .txt, .jsonl or .parquet file; and its split into used and held out.

Training and calibration read the `train` part of a source, evaluation the `held_out` part, so a
model is never measured on what set it. A text file's held-out part is its tail. A hub stream has no
tail within reach, so its first documents are held out.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from compressor.artifact import sha256_of_file
from compressor.errors import NetworkError, UsageError

Split = Literal["train", "held_out", "all"]

HELD_OUT_FRACTION = 0.1
HELD_OUT_HUB_DOCUMENTS = 1000
TEXT_FIELD = "text"
_TEXT_BLOCK_CHARACTERS = 20_000
_FILE_KINDS = (".txt", ".jsonl", ".parquet")


def is_local(spec: str) -> bool:
    """Whether a SOURCE names a file rather than a hub data set."""
    return Path(spec).suffix in _FILE_KINDS or Path(spec).exists()


def source_fingerprint(spec: str) -> dict[str, str]:
    """What identifies a source's content: a file's sha256, or a hub data set's revision.

    Raises:
        UsageError: for a missing or empty file, or one of another kind.
        NetworkError: when the hub cannot be asked.
    """
    if is_local(spec):
        path = _checked_file(spec)
        return {"sha256": _cached_sha256(str(path), path.stat().st_mtime_ns, path.stat().st_size)}
    return {"revision": _hub_revision(spec)}


def documents(spec: str, split: Split) -> Iterator[str]:
    """Stream a source's documents in order.

    Args:
        spec: SOURCE as given on the command line; `ID:CONFIG` names a hub data set's configuration.
        split: Which part.

    Raises:
        UsageError: for a file that is missing, empty or malformed.
        NetworkError: when the hub cannot be reached.
    """
    if not is_local(spec):
        yield from _hub_documents(spec, split)
        return
    path = _checked_file(spec)
    if path.suffix == ".txt":
        yield from _text_blocks(path, split)
        return
    rows = _jsonl_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)
    texts = [_text_of(row, path, number) for number, row in enumerate(rows, 1)]
    if not texts:
        raise UsageError("this text is empty", where=spec, found="no rows")
    first_held_out = len(texts) - max(1, round(len(texts) * HELD_OUT_FRACTION))
    bounds = {"train": (0, first_held_out), "held_out": (first_held_out, None), "all": (0, None)}
    yield from itertools.islice(texts, *bounds[split])


def _checked_file(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UsageError("this text does not exist", where=spec)
    if path.suffix not in _FILE_KINDS:
        raise UsageError("this kind of text is not read", where=spec, expected=" or ".join(_FILE_KINDS))
    if path.stat().st_size == 0:
        raise UsageError("this text is empty", where=spec)
    return path


@functools.lru_cache
def _cached_sha256(path: str, _mtime_ns: int, _size: int) -> str:
    return sha256_of_file(Path(path))


def _text_blocks(path: Path, split: Split) -> Iterator[str]:
    """A text file in blocks of whole lines; their concatenation is the split's text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("this text is not UTF-8", where=str(path), found=error) from error
    cut = text.find("\n", round(len(text) * (1 - HELD_OUT_FRACTION))) + 1
    parts = {"train": text[:cut] if cut else text, "held_out": text[cut:] if cut else "", "all": text}
    block: list[str] = []
    size = 0
    for line in parts[split].splitlines(keepends=True):
        block.append(line)
        size += len(line)
        if size >= _TEXT_BLOCK_CHARACTERS:
            yield "".join(block)
            block, size = [], 0
    if block:
        yield "".join(block)


def _jsonl_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except UnicodeDecodeError as error:
                raise UsageError("this text is not UTF-8", where=f"{path}:{number}", found=error) from error
            except ValueError as error:
                raise UsageError("a line is not JSON", where=f"{path}:{number}", found=error) from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        yield from pyarrow.parquet.read_table(path, columns=[TEXT_FIELD]).to_pylist()
    except (ArrowException, OSError, KeyError) as error:
        raise UsageError("this Parquet file cannot be read", where=str(path), found=error) from error


def _text_of(row: Any, path: Path, number: int) -> str:
    text = row.get(TEXT_FIELD) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise UsageError(
            f"a row has no {TEXT_FIELD!r} string",
            where=f"{path}:{number}",
            expected=f'{{"{TEXT_FIELD}": ...}}',
        )
    return text


def _hub_documents(spec: str, split: Split) -> Iterator[str]:
    from datasets import load_dataset

    name, _, config = spec.partition(":")
    try:
        stream = load_dataset(
            name, config or None, split="train", streaming=True, revision=_hub_revision(spec)
        )
        bounds = {
            "train": (HELD_OUT_HUB_DOCUMENTS, None),
            "held_out": (0, HELD_OUT_HUB_DOCUMENTS),
            "all": (0, None),
        }
        for number, row in enumerate(itertools.islice(stream, *bounds[split]), 1):
            yield _text_of(row, Path(spec), number)
    except (OSError, ValueError) as error:
        raise NetworkError("the data set cannot be streamed", where=spec, found=error) from error


@functools.lru_cache
def _hub_revision(spec: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    name = spec.partition(":")[0]
    try:
        return str(HfApi().dataset_info(name).sha)
    except HFValidationError as error:
        raise UsageError("this is neither a file nor a data set id", where=spec, found=error) from error
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled, RuntimeError) as error:
        raise NetworkError(
            "the data set's revision cannot be asked for",
            where=spec,
            found=type(error).__name__,
            hint="give a local .txt, .jsonl or .parquet file, or go online (HF_TOKEN for gated data)",
        ) from error
