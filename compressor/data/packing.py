"""From documents to fixed windows of token ids and next-token labels.

Documents are joined by the end-of-text token (lines of one text file are not), without BOS, and cut
into windows with nothing dropped but the last remainder. Where documents start is kept beside the
tokens, so that attention and loss can be kept from crossing the documents of a window; so is which
tokens are responses, where only these count.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
import numpy.typing as npt

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.data.sources import Documents, Position, Split
from compressor.data.tokenise import LossOn, TokenArray, Tokenised, tokenised_groups
from compressor.runs.artifact import sealed, sha256_of_file, unsealed, write_json

# The label of a position that has no next token to predict; torch's cross-entropy skips it by default.
IGNORED = -100
STARTS_SUFFIX = ".starts"
MASK_SUFFIX = ".mask"
_LONGER = "give a longer text, or lower the sequence length"
PROGRESS_SUFFIX = ".json"
SAVE_EVERY_TOKENS = 1 << 24

IntArray = npt.NDArray[np.int64]


class _Predicted(TypedDict):
    input_ids: IntArray
    labels: IntArray


class Window(_Predicted, total=False):
    """One training window: arrays `[seq_len]` unless said otherwise.

    Attributes:
        input_ids: Token ids.
        labels: The token that follows each, or `IGNORED`.
        position_ids: Restart at every document; there only with isolated documents.
        domain_id: Number of the text that it was drawn from.
        teacher_top_ids: The teacher's top-k tokens, `[seq_len, k]`, where its logits were stored.
        teacher_top_logprobs: Their log-probabilities, `[seq_len, k]`.
        teacher_tail_logprobs: That of all other tokens together.
    """

    position_ids: IntArray
    domain_id: int
    teacher_top_ids: npt.NDArray[np.int32]
    teacher_top_logprobs: npt.NDArray[np.float16]
    teacher_tail_logprobs: npt.NDArray[np.float16]


def read_windows(spec: str, split: Split, tokenizer: Any, *, size: int, seq_len: int) -> TokenArray:
    """The first `size` windows of a source, `[num_windows, seq_len]`; fewer when the text is shorter.

    Raises:
        UsageError: when the text does not fill one window.
    """
    parts: list[TokenArray] = []
    num_tokens = 0
    for group in tokenised_groups(Documents(spec, split), spec, tokenizer):
        parts += [document.ids for document in group]
        num_tokens += sum(len(document.ids) for document in group)
        if num_tokens >= size * seq_len:
            break
    num_windows = min(size, num_tokens // seq_len)
    if num_windows == 0:
        raise too_short(spec, split, seq_len, num_tokens)
    return np.concatenate(parts)[: num_windows * seq_len].reshape(num_windows, seq_len)


def too_short(spec: str, split: Split, seq_len: int, num_tokens: int) -> UsageError:
    """The error for a text that does not fill one window."""
    return UsageError(
        "the text is shorter than one sequence",
        where=f"{spec} ({split} part)",
        expected=f"at least {seq_len} tokens",
        found=f"{num_tokens} tokens",
        hint=_LONGER,
    )


def starts_path(path: Path) -> Path:
    """Where the document starts of a token file are kept."""
    return path.with_name(path.name + STARTS_SUFFIX)


def mask_path(path: Path) -> Path:
    """Where it is kept which tokens of a token file are responses."""
    return path.with_name(path.name + MASK_SUFFIX)


def progress_path(path: Path) -> Path:
    """Where it is kept how far a token file has been written."""
    return path.with_name(path.name + PROGRESS_SUFFIX)


def write_tokens(
    spec: str, split: Split, tokenizer: Any, path: Path, *, max_tokens: int, loss_on: LossOn = "all"
) -> int:
    """Write up to `max_tokens` ids of a source as little-endian uint32; returns their number.

    Beside them, in `starts_path(path)`, the index of every document's first token as little-endian
    uint64, and for a loss on responses, in `mask_path(path)`, one byte per token, 1 for those of responses.
    What an interrupted call has written is continued, what a finished one has is checked and kept.

    Raises:
        VerificationError: when a finished file is not what was written.
    """
    wanted = _Wanted(source=spec, split=split, max_tokens=max_tokens, loss_on=loss_on)
    written = _read_progress(path, wanted)
    if written.complete:
        _check_tokens(path, written)
        return written.num_tokens
    reader = Documents(spec, split, position=written.position, answers=loss_on == "responses")
    with (
        _continued(path, written.num_tokens * 4) as file,
        _continued(starts_path(path), written.num_starts * 8) as starts,
        _continued(mask_path(path), written.num_tokens if loss_on == "responses" else 0) as mask,
    ):
        last_saved = written.num_tokens
        for group in tokenised_groups(reader, spec, tokenizer, loss_on=loss_on):
            for document in group:
                written.add_(document, file, starts, mask)
            if written.num_tokens >= max_tokens:
                break
            if written.num_tokens - last_saved >= SAVE_EVERY_TOKENS:
                _sync(file, starts, mask)
                last_saved = written.num_tokens
                _save(path, written, reader, complete=False)
        _sync(file, starts, mask)
    if loss_on == "all":
        mask_path(path).unlink()
    _save(path, written, reader, complete=True)
    return written.num_tokens


def _check_tokens(path: Path, written: _Progress) -> None:
    """Compare a finished token file, and what lies beside it, with what was recorded when it was written."""
    for name, expected in written.files.items():
        file = path.with_name(name)
        found = _described(file) if file.is_file() else None
        if found != expected:
            raise VerificationError(
                "a file of tokenised text is damaged",
                where=str(file),
                expected=f"{expected.bytes} bytes, sha256 {expected.sha256[:12]}",
                found="no file" if found is None else f"{found.bytes} bytes, sha256 {found.sha256[:12]}",
                hint=f"delete {progress_path(path)}: the same command tokenises the text again",
            )


def text_record(path: Path) -> dict[str, object]:
    """What a finished token file is of: documents, tokens and rows passed over."""
    record = _read_record(path)
    return {
        "split": record.wanted.split,
        "num_tokens": record.num_tokens,
        "num_documents": record.num_documents,
        "num_empty": record.num_empty,
        "num_replaced": record.num_replaced,
    }


@dataclass(frozen=True)
class _FileState:
    """A file's size and sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Wanted:
    """What a token file is to hold."""

    source: str
    split: Split
    max_tokens: int
    loss_on: LossOn


@dataclass(kw_only=True)
class _Progress:
    """What is recorded beside a token file: what it is to hold, and how far it is written."""

    wanted: _Wanted
    num_tokens: int = 0
    num_starts: int = 0
    num_documents: int = 0
    num_empty: int = 0
    num_replaced: int = 0
    position: Position | None = None
    complete: bool = False
    files: dict[str, _FileState] = field(default_factory=dict)

    def add_(self, document: Tokenised, file: BinaryIO, starts: BinaryIO, mask: BinaryIO) -> None:
        """Append a document, or what the budget leaves of it."""
        kept = document.ids[: self.wanted.max_tokens - self.num_tokens]
        if not len(kept):
            return
        if self.num_tokens == 0 or document.begins:
            starts.write(np.uint64(self.num_tokens).astype("<u8").tobytes())
            self.num_starts += 1
        self.num_documents += document.begins
        file.write(kept.astype("<u4").tobytes())
        if document.mask is not None:
            mask.write(document.mask[: len(kept)].tobytes())
        self.num_tokens += len(kept)


def _save(path: Path, written: _Progress, reader: Documents, *, complete: bool) -> None:
    """Record how far a token file is written; of a finished one also what it and its companions are."""
    written.num_empty, written.num_replaced = reader.num_empty, reader.num_replaced
    written.position, written.complete = None if complete else reader.position(), complete
    if complete:
        files = [file for file in (path, starts_path(path), mask_path(path)) if file.is_file()]
        written.files = {file.name: _described(file) for file in files}
    write_json(progress_path(path), sealed(asdict(written)))


def _described(file: Path) -> _FileState:
    return _FileState(bytes=file.stat().st_size, sha256=sha256_of_file(file))


def _read_record(path: Path) -> _Progress:
    file, what = progress_path(path), "the record of a tokenised text"
    values = unsealed(read_json_mapping(file, what=what), file, what=what, hint=f"delete {file}")
    return as_record(_Progress, values, what=what, where=file)


def _read_progress(path: Path, wanted: _Wanted) -> _Progress:
    """What is recorded beside a token file, if it is of the same text; else nothing done."""
    if progress_path(path).is_file() and (record := _read_record(path)).wanted == wanted:
        return record
    return _Progress(wanted=wanted)


@contextlib.contextmanager
def _continued(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    """A file to append to, cut to what is recorded of it.

    Raises:
        VerificationError: when it is shorter than that.
    """
    path.touch()
    found = path.stat().st_size
    if found < num_bytes:
        raise VerificationError(
            "a file of tokenised text is shorter than was written",
            where=str(path),
            expected=f"at least {num_bytes:,} bytes",
            found=f"{found:,} bytes",
            hint="delete it and the files beside it: the same command tokenises the text again",
        )
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
    start); attention must then be masked by them. For a loss on responses the other labels are `IGNORED`,
    and windows in which none is left are left out.
    """

    def __init__(
        self, path: Path, *, seq_len: int, isolate_documents: bool = False, loss_on: LossOn = "all"
    ) -> None:
        """Map the files written by `write_tokens`.

        Raises:
            UsageError: when they do not fill one window, or hold no response.
            VerificationError: when documents are to be isolated, or responses told from the rest, and the
                file that says where they are is not there.
        """
        self._tokens: TokenArray = (
            np.memmap(path, dtype="<u4", mode="r") if path.stat().st_size else np.zeros(0, "<u4")
        )
        self._seq_len = seq_len
        num_windows = len(self._tokens) // seq_len
        if num_windows == 0:
            raise UsageError(
                "the training text is shorter than one sequence",
                expected=f"at least {seq_len} tokens",
                found=f"{len(self._tokens)} tokens",
                hint=_LONGER,
            )
        self._starts = _read_starts(path) if isolate_documents else None
        self._mask = _read_mask(path, len(self._tokens)) if loss_on == "responses" else None
        self._windows = np.arange(num_windows)
        if self._mask is not None:
            self._windows = np.flatnonzero([self._has_labels(index) for index in range(num_windows)])
            if not len(self._windows):
                raise UsageError(
                    "the training text holds no response",
                    hint="give conversations, or train with --loss-on all",
                )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:
        """`input_ids`, `labels` and, with isolated documents, `position_ids`: int64 `[seq_len]` each."""
        if not 0 <= index < len(self._windows):
            raise IndexError(index)
        return self._window(int(self._windows[index]))

    def _has_labels(self, index: int) -> bool:
        return bool((self._window(index)["labels"] != IGNORED).any())

    def _window(self, index: int) -> Window:
        first, end = index * self._seq_len, (index + 1) * self._seq_len
        labels = np.full(self._seq_len, IGNORED, dtype=np.int64)
        following = self._tokens[first + 1 : end + 1]
        labels[: len(following)] = following
        if self._mask is not None:
            labels[: len(following)][self._mask[first + 1 : end + 1] == 0] = IGNORED
        window: Window = {"input_ids": self._tokens[first:end].astype(np.int64), "labels": labels}
        if self._starts is not None:
            # Boundaries inside the window, and right behind it: the last label may cross that one.
            low, high = np.searchsorted(self._starts, (first + 1, end + 1))
            boundaries = self._starts[low:high].astype(np.int64) - first
            labels[boundaries - 1] = IGNORED
            window["position_ids"] = _positions(boundaries, self._seq_len)
        return window


def _read_mask(path: Path, num_tokens: int) -> npt.NDArray[np.uint8]:
    file = mask_path(path)
    found = file.stat().st_size if file.is_file() else None
    if found != num_tokens:
        raise VerificationError(
            "it is not known which tokens of this text are responses",
            where=str(file),
            expected=f"{num_tokens} bytes",
            found="no file" if found is None else f"{found} bytes",
        )
    return np.memmap(file, dtype=np.uint8, mode="r")


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
