"""A teacher's logits on disk: the top-k tokens of every position, for machines that hold one model.

A directory of shards `logits-00000.npz`, each a compressed zip of NumPy arrays, three per window: ids
`[seq_len, K]` int32, most likely first, their log-probabilities float16 at temperature 1, and the
log-probability of all other tokens together, `[seq_len]` float16. Stores of version 1 lack the last, which is
then what the others, rounded as they are, leave to one. `index.json` says what they are of. A window is found
by a digest of its token ids, so training may visit the windows in any order. Equal windows and weights leave
equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compressor.choices.losses import Loss
from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.data.mixing import WindowStream
from compressor.data.packing import IntArray, Window
from compressor.distillation.buckets import remainder
from compressor.runs.artifact import write_json

INDEX_FILE = "index.json"
SCHEMA = "compress-export/teacher-logits/2"
WITHOUT_TAILS = "compress-export/teacher-logits/1"
_ARRAYS = ("ids", "logprobs", "tail_logprobs")
# What reading damaged bytes raises: one bit may say that a member is encrypted (RuntimeError), or
# compressed in a way that is unknown (NotImplementedError, a RuntimeError) or another (OSError, LZMAError).
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, ValueError)
_REDO = "store the logits again: compress-export cache-logits ... --overwrite"
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class LogitsHeader:
    """What stored logits are of.

    Attributes:
        top_k: Tokens stored per position.
        seq_len: Tokens per window.
        vocab_size: Of the teacher.
        tokenizer: sha256 of its tokenizer.
        teacher: Fingerprint of its checkpoint.
        dtype: Of the stored log-probabilities.
        isolates_documents: Whether attention stopped at the boundaries of packed documents.
    """

    top_k: int
    seq_len: int
    vocab_size: int
    tokenizer: str
    teacher: str
    isolates_documents: bool
    dtype: str = "float16"


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """A shard as the index names it: its size, and the digests of its windows."""

    file: str
    num_bytes: int
    windows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TopTokens:
    """One window's stored part.

    Attributes:
        ids: `[seq_len, K]`.
        logprobs: `[seq_len, K]`.
        tail_logprobs: `[seq_len]`, of all other tokens together; -inf when there are none.
    """

    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float16]
    tail_logprobs: npt.NDArray[np.float16]


def digest_of(input_ids: IntArray) -> str:
    """A window's name in the store."""
    return hashlib.blake2b(input_ids.astype("<u4").tobytes(), digest_size=16).hexdigest()


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"logits-{number:05d}.npz"


def write_shard(path: Path, windows: dict[str, TopTokens]) -> None:
    """Write a shard under a temporary name and rename it, so that a shard that exists is whole."""
    temporary = path.with_name(path.name + ".tmp")
    with zipfile.ZipFile(temporary, "w") as archive:
        for digest, window in windows.items():
            for name in _ARRAYS:
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, getattr(window, name), allow_pickle=False)
                # A date of its own in every member would make equal shards differ.
                member = zipfile.ZipInfo(f"{digest}.{name}.npy", date_time=_FIXED_DATE)
                archive.writestr(member, buffer.getvalue(), compress_type=zipfile.ZIP_DEFLATED)
    temporary.replace(path)


def is_whole(path: Path, members: list[str]) -> bool:
    """Whether a shard is there, holds these windows and has the checksums of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [f"{digest}.{name}.npy" for digest in members for name in _ARRAYS]
            return archive.namelist() == names and archive.testzip() is None
    except _DAMAGE:
        return False


def write_index(directory: Path, header: LogitsHeader, shards: list[tuple[str, list[str]]]) -> None:
    """Write `index.json`, last of all; shards are file names with the digests of their windows."""
    entries = [
        {"file": name, "bytes": (directory / name).stat().st_size, "windows": digests}
        for name, digests in shards
    ]
    num_windows = sum(len(digests) for _, digests in shards)
    record = {"schema": SCHEMA, **asdict(header), "num_windows": num_windows, "shards": entries}
    write_json(directory / INDEX_FILE, record)


class StoredLogits:
    """A finished store, read window by window with one shard open at a time."""

    def __init__(self, directory: Path) -> None:
        """Read the index and check that every shard is there.

        Raises:
            UsageError: when the directory is no such store.
            VerificationError: when the index is corrupt, or a shard missing or of another size.
        """
        self._directory = directory
        self.header, self._schema, shards = _read_index(directory / INDEX_FILE)
        self._shard_of: dict[str, str] = {}
        for shard in shards:
            path = directory / shard.file
            found = path.stat().st_size if path.is_file() else None
            if found != shard.num_bytes:
                raise VerificationError(
                    "a shard of the stored teacher logits is missing or damaged",
                    where=str(path),
                    expected=f"{shard.num_bytes} bytes",
                    found="no file" if found is None else f"{found} bytes",
                    hint=_REDO,
                )
            self._shard_of |= dict.fromkeys(shard.windows, shard.file)
        self._open: tuple[str, Any] | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._shard_of)

    @property
    def holds_all_tokens(self) -> bool:
        """Whether every token of the vocabulary is stored, so that there are no others."""
        return self.header.top_k == self.header.vocab_size

    def require(
        self, *, vocab_size: int, seq_len: int, tokenizer: str, isolates_documents: bool, top_k: int | None
    ) -> None:
        """Refuse a store that does not fit a training.

        Raises:
            UnsupportedError: for another vocabulary.
            UsageError: for other windows, or fewer tokens than asked for.
        """
        header, where = self.header, str(self._directory)
        theirs, ours = (header.vocab_size, header.tokenizer), (vocab_size, tokenizer)
        if theirs != ours:
            raise UnsupportedError(
                "the stored teacher logits are over a different vocabulary",
                where=where,
                expected=f"{vocab_size} tokens, tokenizer {tokenizer[:12]}",
                found=f"{header.vocab_size} tokens, tokenizer {header.tokenizer[:12]}",
                hint="store the logits of a teacher with the student's tokenizer",
            )
        for name, expected, found in (
            ("distill.context_length", seq_len, header.seq_len),
            ("distill.intra_document_masking", isolates_documents, header.isolates_documents),
        ):
            if expected != found:
                raise UsageError(
                    "the teacher logits were stored for other sequences",
                    where=f"{where}, {name}",
                    expected=expected,
                    found=found,
                    hint="distill with the settings that the logits were stored with, or store them again",
                )
        if top_k is not None and top_k > header.top_k:
            raise UsageError(
                "fewer tokens are stored than the loss takes",
                where=f"{where}, distill.top_k",
                expected=f"at most {header.top_k}",
                found=top_k,
                hint="lower --top-k, or store the logits again with this --top-k",
            )

    def require_tails(self, loss: Loss) -> None:
        """Refuse a store without the probability of all other tokens, for a loss that divides by it.

        Raises:
            UsageError: for such a loss, and a store of version 1.
        """
        if loss.needs_tail and self._schema == WITHOUT_TAILS and not self.holds_all_tokens:
            raise UsageError(
                f"{loss.title} needs the probability of all tokens that are not stored, which is missing",
                where=str(self._directory),
                expected=SCHEMA,
                found=self._schema,
                hint=f"{_REDO}; or use --loss forward-kl",
            )

    def require_windows(self, stream: WindowStream) -> None:
        """Refuse a store that lacks a training window, before any training.

        Raises:
            UsageError: when it does.
        """
        for domain in stream.domains:
            for index in range(len(domain.windows)):
                self._digest(domain.windows[index]["input_ids"])

    def _digest(self, input_ids: IntArray) -> str:
        digest = digest_of(input_ids)
        if digest not in self._shard_of:
            raise UsageError(
                "a training sequence is not among the stored teacher logits",
                where=str(self._directory),
                hint="store them for the same text, token budget, batch size and seed",
            )
        return digest

    def window(self, input_ids: IntArray) -> TopTokens:
        """What is stored of one window `[seq_len]`.

        Raises:
            UsageError: for a window that is not in the store.
            VerificationError: when its shard is damaged.
        """
        digest = self._digest(input_ids)
        name = self._shard_of[digest]
        try:
            shard = self._shard(name)
            ids, logprobs = shard[f"{digest}.ids"], shard[f"{digest}.logprobs"]
            if self._schema == WITHOUT_TAILS:
                tails = remainder(torch.from_numpy(logprobs)).to(torch.float16).numpy()
            else:
                tails = shard[f"{digest}.tail_logprobs"]
        except (KeyError, *_DAMAGE) as error:
            raise VerificationError(
                "a shard of the stored teacher logits is damaged",
                where=str(self._directory / name),
                found=error,
                hint=_REDO,
            ) from error
        shape = (self.header.seq_len, self.header.top_k)
        if (ids.shape, logprobs.shape, tails.shape) != (shape, shape, shape[:1]):
            raise VerificationError(
                "a shard of the stored teacher logits is damaged",
                where=str(self._directory / name),
                expected=shape,
                found=(ids.shape, logprobs.shape, tails.shape),
                hint=_REDO,
            )
        return TopTokens(ids=ids, logprobs=logprobs, tail_logprobs=tails)

    def complete(self, window: Window) -> Window:
        """A window with what is stored of its positions."""
        top = self.window(window["input_ids"])
        completed: Window = {**window, "teacher_top_ids": top.ids, "teacher_top_logprobs": top.logprobs}
        if not self.holds_all_tokens:
            completed["teacher_tail_logprobs"] = top.tail_logprobs
        return completed

    def _shard(self, name: str) -> Any:
        if self._open is None or self._open[0] != name:
            if self._open is not None:
                self._open[1].close()
                self._open = None
            self._open = (name, np.load(self._directory / name, allow_pickle=False))
        return self._open[1]


def _read_index(file: Path) -> tuple[LogitsHeader, str, list[_Shard]]:
    """What a store is of, its schema, and its shards."""
    if not file.is_file():
        raise UsageError(
            "this directory holds no stored teacher logits",
            where=str(file.parent),
            expected=INDEX_FILE,
            hint="run `compress-export cache-logits`; if it was interrupted, the same command continues it",
        )
    try:
        record = read_json_mapping(file, what="the index of the stored teacher logits")
        schema = str(record["schema"])
        if schema not in (SCHEMA, WITHOUT_TAILS):
            raise UsageError(
                "the teacher logits were stored by another version of this tool",
                where=str(file),
                expected=SCHEMA,
                found=schema,
                hint=_REDO,
            )
        values = {name: record[name] for name in LogitsHeader.__dataclass_fields__}
        header = as_record(LogitsHeader, values, what="the index of the stored teacher logits", where=file)
        shards = [
            _Shard(
                file=Path(entry["file"]).name,
                num_bytes=int(entry["bytes"]),
                windows=tuple(str(digest) for digest in entry["windows"]),
            )
            for entry in record["shards"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            "the index of the stored teacher logits is corrupt", where=str(file), found=error, hint=_REDO
        ) from error
    return header, schema, shards
