"""From documents to fixed windows of token ids.

Documents are joined by the end-of-text token (lines of one text file are not), without BOS, and cut
into windows with nothing dropped but the last remainder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressor.data.sources import Split, documents
from compressor.errors import UsageError

TokenArray = npt.NDArray[np.uint32]


def token_stream(spec: str, split: Split, tokenizer: Any) -> Iterator[TokenArray]:
    """Token ids of a source, document by document.

    Args:
        spec: SOURCE.
        split: Which part of it.
        tokenizer: A Hugging Face tokenizer.
    """
    separate = not spec.endswith(".txt") and tokenizer.eos_token_id is not None
    for text in documents(spec, split):
        # Not verbose: a text longer than the model's context is no mistake here.
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if separate:
            ids.append(tokenizer.eos_token_id)
        yield np.asarray(ids, dtype=np.uint32)


def read_windows(spec: str, split: Split, tokenizer: Any, *, size: int, seq_len: int) -> TokenArray:
    """The first `size` windows of a source, `[num_windows, seq_len]`; fewer when the text is shorter.

    Raises:
        UsageError: when the text does not fill one window.
    """
    parts: list[TokenArray] = []
    num_tokens = 0
    for ids in token_stream(spec, split, tokenizer):
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


def write_tokens(spec: str, split: Split, tokenizer: Any, path: Path, *, max_tokens: int) -> int:
    """Write up to `max_tokens` ids of a source to `path` as little-endian uint32; returns their number."""
    num_tokens = 0
    with path.open("wb") as file:
        for ids in token_stream(spec, split, tokenizer):
            kept = ids[: max_tokens - num_tokens].astype("<u4")
            file.write(kept.tobytes())
            num_tokens += len(kept)
            if num_tokens >= max_tokens:
                break
    return num_tokens


class PackedWindows:
    """A map from an index to a training window, over as many epochs as asked for.

    Each epoch visits every window once, in an order that the seed and the epoch decide; the index is
    the whole data position, so a resumed run sees exactly what an undisturbed one would.
    """

    def __init__(self, path: Path, *, seq_len: int, num_windows: int, seed: int) -> None:
        """Map the token file written by `write_tokens`.

        Raises:
            UsageError: when it does not fill one window.
        """
        tokens: TokenArray = (
            np.memmap(path, dtype="<u4", mode="r") if path.stat().st_size else np.zeros(0, "<u4")
        )
        self._num_distinct = len(tokens) // seq_len
        if self._num_distinct == 0:
            raise UsageError(
                "the training text is shorter than one window",
                expected=f"at least {seq_len} tokens",
                found=f"{len(tokens)} tokens",
            )
        self._windows = tokens[: self._num_distinct * seq_len].reshape(self._num_distinct, seq_len)
        self._num_windows, self._seed = num_windows, seed
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    @property
    def num_epochs(self) -> float:
        """How often the distinct text is seen."""
        return self._num_windows / self._num_distinct

    def __len__(self) -> int:
        return self._num_windows

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[np.int64]]:
        epoch, position = divmod(index, self._num_distinct)
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = (epoch, generator.permutation(self._num_distinct))
        return {"input_ids": self._windows[self._order[1][position]].astype(np.int64)}
