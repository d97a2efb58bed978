"""From documents to fixed windows of token ids and next-token labels.

Documents are joined by the end-of-text token (lines of one text file are not), without BOS, and cut
into windows with nothing dropped but the last remainder. Where documents start is kept beside the
tokens, so that attention and loss can be kept from crossing the documents of a window.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from compressor.artifact import write_json
from compressor.data.conversations import Document, render
from compressor.data.sources import Documents, Position, Split, documents
from compressor.errors import UsageError, VerificationError

# The label of a position that has no next token to predict; torch's cross-entropy skips it by default.
IGNORED = -100
STARTS_SUFFIX = ".starts"
PROGRESS_SUFFIX = ".json"
SAVE_EVERY_TOKENS = 1 << 24

TokenArray = npt.NDArray[np.uint32]
Window = dict[str, Any]


def tokenise(spec: str, document: Document, tokenizer: Any) -> TokenArray:
    """A document's token ids, without BOS.

    A row of a table ends with the end-of-text token; the pieces of a text file do not.
    """
    # Not verbose: a text longer than the model's context is no mistake here.
    ids = tokenizer(render(document, tokenizer), add_special_tokens=False, verbose=False).input_ids
    end = None if _is_one_document(spec) else tokenizer.eos_token_id
    if end is not None and (not ids or ids[-1] != end):
        ids.append(end)
    return np.asarray(ids, dtype=np.uint32)


def _is_one_document(spec: str) -> bool:
    return spec.endswith(".txt")


def read_windows(spec: str, split: Split, tokenizer: Any, *, size: int, seq_len: int) -> TokenArray:
    """The first `size` windows of a source, `[num_windows, seq_len]`; fewer when the text is shorter.

    Raises:
        UsageError: when the text does not fill one window.
    """
    parts: list[TokenArray] = []
    num_tokens = 0
    for document in documents(spec, split):
        ids = tokenise(spec, document, tokenizer)
        parts.append(ids)
        num_tokens += len(ids)
        if num_tokens >= size * seq_len:
            break
    num_windows = min(size, num_tokens // seq_len)
    if num_windows == 0:
        raise UsageError(
            "the text is shorter than one window",
            where=f"{spec} ({split} part)",
            expected=f"at least {seq_len} tokens",
            found=f"{num_tokens} tokens",
            hint="give a longer text, or shorter windows",
        )
    return np.concatenate(parts)[: num_windows * seq_len].reshape(num_windows, seq_len)


def starts_path(path: Path) -> Path:
    """Where the document starts of a token file are kept."""
    return path.with_name(path.name + STARTS_SUFFIX)


def progress_path(path: Path) -> Path:
    """Where it is kept how far a token file has been written."""
    return path.with_name(path.name + PROGRESS_SUFFIX)


def write_tokens(spec: str, split: Split, tokenizer: Any, path: Path, *, max_tokens: int) -> int:
    """Write up to `max_tokens` ids of a source as little-endian uint32; returns their number.

    Beside them, in `starts_path(path)`, the index of every document's first token as little-endian
    uint64. What an interrupted call has written is continued, what a finished one has is kept.
    """
    wanted = {"source": spec, "split": split, "max_tokens": max_tokens}
    done = _read_progress(path, wanted)
    if done.complete:
        return done.num_tokens
    reader = Documents(spec, split, position=done.position)
    with (
        _continued(path, done.num_tokens * 4) as file,
        _continued(starts_path(path), done.num_documents * 8) as starts,
    ):
        num_tokens, num_documents, last_saved = done.num_tokens, done.num_documents, done.num_tokens
        for document in reader:
            kept = tokenise(spec, document, tokenizer)[: max_tokens - num_tokens]
            if len(kept) and (num_tokens == 0 or not _is_one_document(spec)):
                starts.write(np.uint64(num_tokens).astype("<u8").tobytes())
                num_documents += 1
            file.write(kept.astype("<u4").tobytes())
            num_tokens += len(kept)
            if num_tokens >= max_tokens:
                break
            if num_tokens - last_saved >= SAVE_EVERY_TOKENS:
                _sync(file, starts)
                last_saved = num_tokens
                progress = _Progress(num_tokens, num_documents, reader.position(), complete=False)
                write_json(progress_path(path), {**wanted, **asdict(progress)})
        _sync(file, starts)
    progress = _Progress(num_tokens, num_documents, None, complete=True)
    write_json(progress_path(path), {**wanted, **asdict(progress)})
    return num_tokens


def remove_tokens(path: Path) -> None:
    """Remove a token file and what `write_tokens` keeps beside it."""
    for file in (path, starts_path(path), progress_path(path)):
        file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Progress:
    """How far a token file is written."""

    num_tokens: int
    num_documents: int
    position: Position | None
    complete: bool


def _read_progress(path: Path, wanted: dict[str, Any]) -> _Progress:
    """What is recorded beside a token file, if it is of the same text; else nothing done."""
    if not progress_path(path).is_file():
        return _Progress(0, 0, None, complete=False)
    record = json.loads(progress_path(path).read_text(encoding="utf-8"))
    if any(record.pop(key) != value for key, value in wanted.items()):
        return _Progress(0, 0, None, complete=False)
    return _Progress(**record)


@contextlib.contextmanager
def _continued(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    """A file to append to, cut to what is recorded of it."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(num_bytes)
        file.seek(num_bytes)
        yield file


def _sync(*files: BinaryIO) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


class TokenWindows:
    """The distinct windows of a token file, in the order of the text.

    A window's last label is the token that follows it in the file. With isolated documents, labels
    across a boundary are `IGNORED` and `position_ids` restart at every document (and at the window's
    start); attention must then be masked by them.
    """

    def __init__(self, path: Path, *, seq_len: int, isolate_documents: bool = False) -> None:
        """Map the files written by `write_tokens`.

        Raises:
            UsageError: when they do not fill one window.
            VerificationError: when documents are to be isolated and their starts are not there.
        """
        self._tokens: TokenArray = (
            np.memmap(path, dtype="<u4", mode="r") if path.stat().st_size else np.zeros(0, "<u4")
        )
        self._seq_len = seq_len
        self._num_windows = len(self._tokens) // seq_len
        if self._num_windows == 0:
            raise UsageError(
                "the training text is shorter than one window",
                expected=f"at least {seq_len} tokens",
                found=f"{len(self._tokens)} tokens",
            )
        self._starts = _read_starts(path) if isolate_documents else None

    def __len__(self) -> int:
        return self._num_windows

    def __getitem__(self, index: int) -> Window:
        """`input_ids`, `labels` and, with isolated documents, `position_ids`: int64 `[seq_len]` each."""
        if not 0 <= index < self._num_windows:
            raise IndexError(index)
        first, end = index * self._seq_len, (index + 1) * self._seq_len
        labels = np.full(self._seq_len, IGNORED, dtype=np.int64)
        following = self._tokens[first + 1 : end + 1]
        labels[: len(following)] = following
        window = {"input_ids": self._tokens[first:end].astype(np.int64), "labels": labels}
        if self._starts is not None:
            # Boundaries inside the window, and right behind it: the last label may cross that one.
            low, high = np.searchsorted(self._starts, (first + 1, end + 1))
            boundaries = self._starts[low:high].astype(np.int64) - first
            labels[boundaries - 1] = IGNORED
            window["position_ids"] = _positions(boundaries, self._seq_len)
        return window


def _read_starts(path: Path) -> npt.NDArray[np.uint64]:
    file = starts_path(path)
    if not file.is_file():
        raise VerificationError(
            "it is not known where the documents of this text start", where=str(path), expected=file.name
        )
    return np.fromfile(file, dtype="<u8")


def _positions(boundaries: npt.NDArray[np.int64], seq_len: int) -> npt.NDArray[np.int64]:
    """Positions that restart at every boundary (0 < boundary; one at `seq_len` has no effect)."""
    index = np.arange(seq_len, dtype=np.int64)
    begin = np.zeros(seq_len, dtype=np.int64)
    inside = boundaries[boundaries < seq_len]
    begin[inside] = inside
    return index - np.maximum.accumulate(begin)


def epoch_order(num_windows: int, seed: int, epoch: int, domain: int = 0) -> npt.NDArray[np.int64]:
    """The order in which an epoch visits the distinct windows of a domain."""
    key = [seed, epoch, domain] if domain else [seed, epoch]
    return np.random.default_rng(key).permutation(num_windows)
