"""Calibration sequences, spread evenly over the text that they are taken from.

The first windows of a text are one subject and one author; windows from all over it are the text. Of the
W windows of the training part, `size` are taken by systematic sampling: at equal distances, from a random
offset, in order. A hub data set is sampled over its first documents, a very large local text over every
k-th document, which is spread over it as well.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.data.files import is_local
from compressor.data.packing import IntArray, too_short
from compressor.data.plain import PIECE_CHARACTERS
from compressor.data.sources import Documents, describe_source, survey
from compressor.data.tokenise import GROUP_DOCUMENTS, TokenArray, grouped, tokenise_all
from compressor.recipe.recipe import Calibration

# Tokenised to choose windows from, at least: some seconds of work.
MIN_CHARACTERS = 1 << 25
# So many documents, or pieces of plain text, are taken at least, however large they are: a few would be
# no spread.
_MIN_DOCUMENTS = 256
# More than a token stands for in any language, so that thinning leaves windows enough.
_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True, kw_only=True)
class CalibrationWindows:
    """Windows of a text, and where they come from.

    Attributes:
        ids: `[num_windows, seq_len]`.
        record: The text, how many windows it has, and which were taken, as plain JSON values.
    """

    ids: TokenArray
    record: dict[str, object]

    def shortage(self, calibration: Calibration) -> str | None:
        """What to warn of when the text has fewer windows than were asked for."""
        if len(self.ids) == calibration.size:
            return None
        return (
            f"the calibration text fills {len(self.ids)} sequences of {calibration.seq_len} tokens, "
            f"not {calibration.size}"
        )


def calibration_windows(calibration: Calibration, tokenizer: Any, *, seed: int) -> CalibrationWindows:
    """Up to `calibration.size` windows, spread over the training part of a text.

    Args:
        calibration: The text, and how many windows of which length.
        tokenizer: The model's.
        seed: Of the run; places the first window.

    Raises:
        UsageError: when the text does not fill one window.
    """
    spec, seq_len = calibration.data, calibration.seq_len
    stride = _stride(calibration) if is_local(spec) else 1
    tokens, num_documents = _read(calibration, tokenizer, stride=stride)
    while stride > 1 and len(tokens) < calibration.size * seq_len:
        stride = stride // 2
        tokens, num_documents = _read(calibration, tokenizer, stride=stride)
    num_windows = len(tokens) // seq_len
    if num_windows == 0:
        raise too_short(spec, "train", seq_len, len(tokens))
    size = min(calibration.size, num_windows)
    chosen = spread(num_windows, size, seed=seed)
    windows = tokens[: num_windows * seq_len].reshape(num_windows, seq_len)[chosen]
    record = {
        **describe_source(spec),
        "split": "train",
        "num_documents": num_documents,
        "every_nth_document": stride,
        "windows": size,
        "of_windows": num_windows,
        "first_window": int(chosen[0]),
        "last_window": int(chosen[-1]),
    }
    return CalibrationWindows(ids=windows, record=record)


def spread(total: int, size: int, *, seed: int) -> IntArray:
    """`size` of the numbers below `total`, in order and at equal distances, from a random offset."""
    offset = np.random.default_rng([seed, total, size]).random()
    return np.minimum((np.arange(size) + offset) * total / size, total - 1).astype(np.int64)


def _stride(calibration: Calibration) -> int:
    """Every how many-th document of a local text is tokenised."""
    found = survey(calibration.data)
    wanted = max(MIN_CHARACTERS, _CHARACTERS_PER_TOKEN * calibration.size * calibration.seq_len)
    num_documents = max(
        found.num_documents, found.num_characters // PIECE_CHARACTERS if found.is_plain else 0
    )
    return max(1, min(found.num_characters // wanted, num_documents // _MIN_DOCUMENTS))


def _read(calibration: Calibration, tokenizer: Any, *, stride: int) -> tuple[TokenArray, int]:
    """The tokens of every `stride`-th document, and how many documents these are.

    Of a hub data set, of its first documents, or of more where they do not fill the windows.
    """
    spec = calibration.data
    wanted = calibration.size * calibration.seq_len
    rows = itertools.islice(Documents(spec, "train"), stride // 2, None, stride)
    parts: list[TokenArray] = [np.zeros(0, dtype=np.uint32)]
    num_documents = num_tokens = 0
    for group in grouped(rows, GROUP_DOCUMENTS):
        parts += [found.ids for found in tokenise_all(spec, group, tokenizer, first=num_documents)]
        num_documents += len(group)
        num_tokens += sum(len(part) for part in parts[-len(group) :])
        if not is_local(spec) and num_documents >= calibration.documents and num_tokens >= wanted:
            break
    return np.concatenate(parts), num_documents
