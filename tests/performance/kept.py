"""What a long measurement keeps in `build` until its result is written: an interrupted one continues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from compressor.runs.artifact import write_json

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
_FOUND, _SECONDS = "found.json", "seconds"


@contextmanager
def measuring(name: str) -> Iterator[Callable[[], int]]:
    """Yields what tells the seconds that a measurement took so far, with those of its interrupted calls.

    What it kept goes when the block ends well: the result must be written inside of it.
    """
    place = place_of(name)
    file, started = place / _SECONDS, monotonic()
    before = float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0

    def seconds() -> int:
        return round(before + monotonic() - started)

    try:
        yield seconds
    except BaseException:
        place_of(name)
        file.write_text(str(seconds()), encoding="utf-8")
        raise
    shutil.rmtree(place)


def place_of(name: str) -> Path:
    """The directory of a measurement, made where it is not there."""
    place = BUILD / name
    place.mkdir(parents=True, exist_ok=True)
    return place


def read_kept(name: str) -> dict[str, Any]:
    """What an interrupted measurement found."""
    file = place_of(name) / _FOUND
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def keep(name: str, found: dict[str, Any]) -> None:
    write_json(place_of(name) / _FOUND, found)
