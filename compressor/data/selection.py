"""Which of a directory's files are the text: no cards beside data, and of several splits the training one.

Splits are told by the words that `datasets` knows, standing alone in a file's name or else in that of a
directory: `train.jsonl`, `data/test-00000-of-00002.parquet`, `validation/part1.csv`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

_CARD = re.compile(r"(readme|licen[cs]e|notice|citation)([^a-z].*)?", re.IGNORECASE)
# What older versions of `datasets` left beside the files of a data set.
_INFOS = ("dataset_info.json", "dataset_infos.json")
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_SPLIT_WORDS: dict[str, Literal["train", "held_out"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "held_out"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "held_out"),
}


def cards_among(names: Sequence[str], *, is_table: Callable[[str], bool]) -> tuple[str, ...]:
    """Descriptions and licences beside data files; where there are no data files, they are text themselves.

    Args:
        names: Paths below the directory.
        is_table: Whether a name is that of a data file.
    """
    cards = tuple(name for name in names if _is_card(name, is_table=is_table))
    return cards if any(is_table(name) for name in names if name not in cards) else ()


def other_splits_among(names: Sequence[str], *, is_table: Callable[[str], bool]) -> tuple[str, ...]:
    """What is of no training split, where some files are of a training split and others of another.

    Among plain texts all must be of one or the other: a directory of code that holds `train.py` and
    `test_it.py` is not a data set.

    Args:
        names: Paths below the directory.
        is_table: Whether a name is that of a data file.
    """
    splits = {name: split_of(name) for name in names}
    is_data_set = None not in splits.values() or any(is_table(name) for name in names)
    if not is_data_set or not {"train", "held_out"} <= set(splits.values()):
        return ()
    return tuple(name for name, split in splits.items() if split != "train")


def split_of(name: str) -> Literal["train", "held_out"] | None:
    """What a path below a directory says of the split; None for nothing, or for both."""
    for part in reversed(name.lower().split("/")):
        words = _SEPARATORS.split(part)
        found = {split for word, split in _SPLIT_WORDS.items() if word in words}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _is_card(name: str, *, is_table: Callable[[str], bool]) -> bool:
    base = name.rpartition("/")[2]
    return base in _INFOS or (_CARD.fullmatch(base) is not None and not is_table(name))
