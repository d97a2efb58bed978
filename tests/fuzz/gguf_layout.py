"""Changes to GGUF files at the places of their header's values, found by a walk of its own."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutations import NUMBERS, TEXTS, Draw, mutated_bytes

_WIDTHS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A value of the header: a number by its code, or a string with its length in front (code `s`)."""

    start: int
    end: int
    code: str


def mutated_gguf(draw: Draw, content: bytes) -> bytes:
    """One to three values of the header changed, the tensors still where the header says; or bytes."""
    if draw(st.integers(0, 4)) == 0:
        return mutated_bytes(draw, content)
    parts, end = _walk(content)
    start = -(-end // _ALIGNMENT) * _ALIGNMENT
    header, data = bytearray(content[:end]), content[start:]
    chosen = draw(st.lists(st.sampled_from(parts), min_size=1, max_size=3, unique=True))
    for part in sorted(chosen, key=lambda part: -part.start):
        header[part.start : part.end] = _value(draw, part, bytes(header[part.start : part.end]))
    padding = b"\0" * (-len(header) % _ALIGNMENT)
    return bytes(header) + padding + draw(st.sampled_from((data, data, data, data[: len(data) // 2])))


def _value(draw: Draw, part: _Part, before: bytes) -> bytes:
    if part.code == "s":
        text = draw(st.sampled_from(TEXTS)).encode("utf-8", "surrogatepass")
        kept = draw(st.sampled_from((b"", before[8:])))
        stated = draw(st.sampled_from((len(kept + text),) * 4 + (0, 2**26, 2**63)))
        return struct.pack("<Q", stated) + kept + text
    number: Any = draw(st.sampled_from(NUMBERS))
    if part.code in "fd":
        number = float(number) if abs(float(number)) < 1e38 or part.code == "d" else float("inf")
        return struct.pack(f"<{part.code}", number)
    whole = int(number) if math.isfinite(number) else 0
    width = part.end - part.start
    return struct.pack("<Q", whole & (2**64 - 1))[:width]


class _Walk:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 4
        self.parts: list[_Part] = []

    def number(self, code: str) -> Any:
        width = struct.calcsize(f"<{code}")
        self.parts.append(_Part(start=self.at, end=self.at + width, code=code))
        self.at += width
        return struct.unpack(f"<{code}", self.content[self.at - width : self.at])[0]

    def string(self) -> None:
        length = struct.unpack("<Q", self.content[self.at : self.at + 8])[0]
        self.parts.append(_Part(start=self.at, end=self.at + 8 + length, code="s"))
        self.at += 8 + length

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.value(inner)
        else:
            self.number(_WIDTHS[kind])


def _walk(content: bytes) -> tuple[list[_Part], int]:
    """Every value of a valid header, long lists thinned out, and where the header ends."""
    walk = _Walk(content)
    walk.number("I")
    num_tensors, num_fields = walk.number("Q"), walk.number("Q")
    important: list[_Part] = []
    for _ in range(num_fields):
        first = len(walk.parts)
        walk.string()
        walk.value(walk.number("I"))
        important += walk.parts[first : first + 12]
    first = len(walk.parts)
    for _ in range(num_tensors):
        walk.string()
        for _ in range(walk.number("I")):
            walk.number("Q")
        walk.number("I")
        walk.number("Q")
    return [*walk.parts[:3], *important, *walk.parts[first:]], walk.at
