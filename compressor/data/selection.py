"""Which of a directory's files are the text: no cards beside data, and of several splits the training one.

Splits are told by the words that `datasets` knows, standing alone in a file's name or else in that of a
directory: `train.jsonl`, `data/test-00000-of-00002.parquet`, `validation/part1.csv`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Kind = Literal["plain", "jsonl", "json", "csv", "tsv", "parquet", "saved"]

_KIND_OF_SUFFIX: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
PACKED_SUFFIXES = (".gz", ".zst")
LOCAL_SUFFIXES = (".txt", ".md", *_KIND_OF_SUFFIX, *PACKED_SUFFIXES)
_CARD = re.compile(r"(readme|licen[cs]e|notice|citation)([^a-z].*)?", re.IGNORECASE)
# What older versions of `datasets` left beside the files of a data set.
_INFOS = ("dataset_info.json", "dataset_infos.json")
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_SPLIT_WORDS: dict[str, Literal["train", "held_out"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "held_out"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "held_out"),
}


def kind_of_name(path: str | Path) -> Kind:
    """What a file's name says of it, compressed or not."""
    inner = Path(path)
    if inner.suffix.lower() in PACKED_SUFFIXES:
        inner = inner.with_suffix("")
    return _KIND_OF_SUFFIX.get(inner.suffix.lower(), "plain")


def cards_among(names: Sequence[str]) -> tuple[str, ...]:
    """Descriptions and licences beside data files; where there are no data files, they are the text."""
    cards = tuple(name for name in names if _is_card(name))
    return cards if any(_is_table(name) for name in names if name not in cards) else ()


def other_splits_among(names: Sequence[str]) -> tuple[str, ...]:
    """What is of no training split, where some files are of a training split and others of another.

    Among plain texts all must be of one or the other: a directory of code that holds `train.py` and
    `test_it.py` is not a data set.
    """
    splits = {name: _split_of(name) for name in names}
    is_data_set = None not in splits.values() or any(map(_is_table, names))
    if not is_data_set or not {"train", "held_out"} <= set(splits.values()):
        return ()
    return tuple(name for name, split in splits.items() if split != "train")


def _split_of(name: str) -> Literal["train", "held_out"] | None:
    """What a path below a directory says of the split; None for nothing, or for both."""
    for part in reversed(name.lower().split("/")):
        words = _SEPARATORS.split(part)
        found = {split for word, split in _SPLIT_WORDS.items() if word in words}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _is_card(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base in _INFOS or (_CARD.fullmatch(base) is not None and not _is_table(name))


def _is_table(name: str) -> bool:
    return kind_of_name(name) != "plain"
