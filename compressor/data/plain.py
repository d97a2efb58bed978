"""Plain text in pieces: decoded as a stream, cut behind lines, and split behind nine tenths.

Line ends become line feeds, as in Python's text files. Several files are a document each.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from compressor.data.files import BOM, LocalText, not_utf8, open_unpacked
from compressor.data.rows import TextPiece

_SPACE = re.compile(r"\s")
PIECE_CHARACTERS = 20_000
# A line longer than this is cut at a space: it is never held, or tokenised, in one piece.
MAX_LINE_CHARACTERS = 1 << 20
_CHUNK_BYTES = 1 << 20


def num_characters(path: Path) -> int:
    """How many characters a file holds.

    Raises:
        UsageError: for one that is not UTF-8, with the place.
    """
    return sum(map(len, _chunks(path)))


def find_cut(text: LocalText, total: int, fraction: float) -> int:
    """Where the held-out part begins, in characters over all files: behind a line break in the tail.

    In a tail without one it begins behind white space; where there is none either, nothing is held out.

    Args:
        text: Plain text.
        total: Its characters.
        fraction: How much to hold out.
    """
    wanted, first = round(total * (1 - fraction)), 0
    space = total
    for chunk in (chunk for file in text.files for chunk in _chunks(file.path)):
        begin = max(0, wanted - first)
        line = chunk.find("\n", begin) + 1
        if line and first + line < total:
            return first + line
        if space == total and (found := _SPACE.search(chunk, begin)):
            space = min(total, first + found.end())
        first += len(chunk)
    return space


def pieces(text: LocalText, first: int, end: int) -> Iterator[TextPiece]:
    """The characters `first` up to `end` over all files, in pieces of whole lines."""
    position = 0
    for file in text.files:
        begins, size = True, 0
        lines: list[str] = []
        for line in _lines(file.path):
            start, position = position, position + len(line)
            if start >= end:
                break
            kept = line[max(0, first - start) : end - start]
            if not kept:
                continue
            if size >= PIECE_CHARACTERS:
                yield TextPiece(text="".join(lines), begins=begins, ends=False)
                begins, lines, size = False, [], 0
            lines.append(kept)
            size += len(kept)
        if lines:
            yield TextPiece(text="".join(lines), begins=begins, ends=len(text.files) > 1)
        if position >= end:
            return


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, at every break that Python knows; very long ones in several parts."""
    rest = ""
    for chunk in _chunks(path):
        found = (rest + chunk).splitlines(keepends=True)
        rest = found.pop() if found else ""
        yield from found
        while len(rest) > MAX_LINE_CHARACTERS:
            cut = 1 + max(rest.rfind(space, 0, MAX_LINE_CHARACTERS) for space in " \t")
            cut = cut or MAX_LINE_CHARACTERS
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[str]:
    """A file's text with line feeds as line ends and without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    num_bytes, line = 0, 1
    with open_unpacked(path) as stream:
        while True:
            content = stream.read(_CHUNK_BYTES)
            if num_bytes == 0:
                num_bytes = len(BOM) if content.startswith(BOM) else 0
                content = content.removeprefix(BOM)
            pending = decoder.getstate()[0]
            try:
                decoded = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                whole = pending + content
                line += whole.count(b"\n", 0, error.start)
                at = num_bytes - len(pending) + error.start
                raise not_utf8(whole[error.start], where=f"{path}:{line}, byte {at}") from error
            num_bytes += len(content)
            line += decoded.count("\n")
            translated = newlines.decode(decoded, final=not content)
            if translated:
                yield translated
            if not content:
                return
