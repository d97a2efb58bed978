"""Text by name: a hub data set, or local files; its documents, and its split into used and held out.

Training and calibration read the `train` part of a source, evaluation the `held_out` part, so a
model is never measured on what set it. A local text's held-out part is its tail, the last tenth. A hub
stream has no tail within reach, so its first documents are held out.

A local text is surveyed before its first document is given: all of it is read and checked once, so that
a broken row is found before anything long begins.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from compressor.core.errors import NetworkError, UsageError
from compressor.core.network_errors import lost_connections
from compressor.data.files import LocalText, cached_sha256, find_files, is_local
from compressor.data.hub import ONLINE, hub_name, hub_revision, open_hub_split
from compressor.data.plain import find_cut, num_characters, pieces
from compressor.data.readers import read_rows
from compressor.data.rows import (
    Completion,
    Conversation,
    Document,
    TextPiece,
    document_of,
    fields_beside_text,
    has_response,
    without_nulls,
)
from compressor.runs.inputs import OF_BYTES, OF_DOCUMENTS

Split = Literal["train", "held_out", "all"]

HELD_OUT_FRACTION = 0.1
HELD_OUT_HUB_DOCUMENTS = 1000
# A record stays readable; the sum over all files says that they are the same.
MAX_LISTED_FILES = 20


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place behind a document of a source.

    Attributes:
        documents: Documents taken so far.
        empty: Rows without a content passed over so far, of a hub data set.
        stream: State of a hub data set's stream; None for a local text.
    """

    documents: int
    empty: int = 0
    stream: dict[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a local text holds.

    Attributes:
        num_documents: Rows that hold something; of plain text its files.
        num_empty: Rows that hold nothing, blank lines among them.
        num_replaced: Surrogates without a partner, replaced by U+FFFD.
        num_characters: Of all documents, without what a chat template adds.
        cut: Where the held-out part begins: the number of a document, of plain text a character.
        is_plain: Whether it is running text, which comes in pieces.
        has_conversations: Whether a chat template is needed.
        plain_rows: Place of the first row that has no responses, or None.
        first_response: Number from 0 of the first document that holds one, where these are wanted; else None.
        digest: sha256 over the documents in order; None for running text, whose bytes say all.
    """

    num_documents: int
    num_empty: int = 0
    num_replaced: int = 0
    num_characters: int
    cut: int
    is_plain: bool
    has_conversations: bool = False
    plain_rows: str | None
    first_response: int | None = None
    digest: str | None = None


def source_fingerprint(spec: str) -> str:
    """What identifies a source's content.

    It is the sha256 of running text's file or files, or of a table's documents in their order: a blank line
    more, another compression or a column that is not read makes no other text. Of a data set of the hub it
    is the revision, with the name that is the same however it is given.

    Raises:
        UsageError: for a missing or empty text, or one of another kind.
        NetworkError: when the hub cannot be asked.
    """
    if not is_local(spec):
        return f"{hub_name(spec).spec}@{hub_revision(spec)}"
    text = find_files(spec)
    if not text.is_plain:
        return f"{OF_DOCUMENTS}{survey(spec).digest}"
    sums = [cached_sha256(*state) for state in text.state()]
    if len(sums) == 1:
        return f"{OF_BYTES}{sums[0]}"
    return f"{OF_BYTES}{hashlib.sha256(''.join(sums).encode()).hexdigest()}"


def survey(spec: str, *, answers: bool = False) -> Survey:
    """Read and check all of a local text, once as long as its files do not change.

    `answers` says that it is read for its responses.

    Raises:
        UsageError: for a row or a file that cannot be read, with its place; for a text without documents.
    """
    text = find_files(spec)
    return _survey(text, text.state(), answers)


class Documents:
    """A source's documents in order, and the position from which they can be taken up again.

    Attributes:
        num_taken: How many were taken so far, those before the position included.
        num_empty: Rows without a content that were passed over so far; of a local text, all of them.
        num_replaced: The same of lone surrogates.
    """

    def __init__(
        self, spec: str, split: Split, *, position: Position | None = None, answers: bool = False
    ) -> None:
        """Open a source.

        Args:
            spec: SOURCE as given on the command line; `ID:CONFIG:SPLIT` names a part of a hub data set.
            split: Which part.
            position: Where to continue.
            answers: Whether it is read for its responses.

        Raises:
            UsageError: for a text that is missing, empty or malformed.
            NetworkError: when the hub cannot be reached.
        """
        position = position or Position(documents=0)
        self._spec, self._answers = spec, answers
        self.num_taken, self.num_empty, self.num_replaced = position.documents, position.empty, 0
        self._hub: Any = None
        if is_local(spec):
            found = survey(spec, answers=answers)
            self.num_empty, self.num_replaced = found.num_empty, found.num_replaced
            rows = _local_documents(find_files(spec), found, split, answers=answers)
            self._rows: Iterator[Document] = itertools.islice(rows, self.num_taken, None)
        else:
            self._hub = _hub_part(spec, split)
            if position.stream is not None:
                self._hub.load_state_dict(position.stream)
            self._rows = self._hub_documents()

    def __iter__(self) -> Iterator[Document]:
        for document in self._rows:
            self.num_taken += 1
            yield document

    def position(self) -> Position:
        """Behind the last document taken."""
        if self._hub is None:
            return Position(documents=self.num_taken)
        return Position(documents=self.num_taken, empty=self.num_empty, stream=dict(self._hub.state_dict()))

    def _hub_documents(self) -> Iterator[Document]:
        first = self.num_taken + self.num_empty + 1
        try:
            for number, row in enumerate(self._hub, first):
                where = f"{self._spec}, row {number}"
                document = document_of(without_nulls(row), where=where, answers=self._answers)
                if document is None:
                    self.num_empty += 1
                else:
                    yield document
        except lost_connections(OSError, ValueError) as error:
            raise NetworkError(
                "the data set cannot be streamed", where=self._spec, found=error, hint=ONLINE
            ) from error


def describe_source(spec: str) -> dict[str, object]:
    """What a text is, for the record of a stage: its files in order, or the hub's revision.

    Names are those below the text's own directory, and of many files the first ones.
    """
    if not is_local(spec):
        return {"hub": spec, "revision": hub_revision(spec)}
    text = find_files(spec)
    files = [
        {"name": file.name, "bytes": size, "sha256": cached_sha256(path, changed, size)}
        for file, (path, changed, size) in zip(text.files, text.state(), strict=True)
    ]
    found = survey(spec)
    left_out = [*text.cards, *text.other_splits]
    return {
        **({"left_out": left_out[:MAX_LISTED_FILES]} if left_out else {}),
        "files": files[:MAX_LISTED_FILES],
        "num_files": len(files),
        "bytes": sum(size for _, _, size in text.state()),
        "fingerprint": source_fingerprint(spec),
        "documents_in_all": found.num_documents,
        "empty_rows": found.num_empty,
        "replaced_surrogates": found.num_replaced,
    }


@functools.lru_cache
def _survey(text: LocalText, _state: tuple[tuple[str, int, int], ...], answers: bool) -> Survey:  # noqa: FBT001 - a key of the cache
    if text.is_plain:
        total = sum(num_characters(file.path) for file in text.files)
        if total == 0:
            raise UsageError("this text is empty", where=text.spec, hint="give a file with text")
        return Survey(
            num_documents=len(text.files),
            num_characters=total,
            cut=find_cut(text, total, HELD_OUT_FRACTION),
            is_plain=True,
            plain_rows=text.spec,
        )
    return _survey_rows(text, answers=answers)


def _survey_rows(text: LocalText, *, answers: bool) -> Survey:
    num_documents = num_empty = num_replaced = characters = 0
    has_conversations, plain_rows, first_response = False, None, None
    digest = hashlib.sha256()
    for where, value, replaced in read_rows(text):
        document = None if value is None else document_of(value, where=where, answers=answers)
        num_replaced += replaced
        if document is None:
            num_empty += 1
            continue
        if answers and has_response(document, where=where) and first_response is None:
            first_response = num_documents
        num_documents += 1
        characters += _num_characters(document)
        digest.update(_canonical(document))
        if isinstance(document, str) and (others := fields_beside_text(value)):
            digest.update(json.dumps(others, sort_keys=True).encode() + b"\n")
        has_conversations = has_conversations or isinstance(document, Conversation)
        if isinstance(document, str) and plain_rows is None:
            plain_rows = where
    if num_documents == 0:
        raise UsageError(
            "this text is empty",
            where=text.spec,
            found=f"{num_empty} empty rows" if num_empty else "no rows",
            hint="give a text with rows that hold something",
        )
    return Survey(
        num_documents=num_documents,
        num_empty=num_empty,
        num_replaced=num_replaced,
        num_characters=characters,
        cut=num_documents - max(1, round(num_documents * HELD_OUT_FRACTION)),
        is_plain=False,
        has_conversations=has_conversations,
        plain_rows=plain_rows,
        first_response=first_response,
        digest=digest.hexdigest(),
    )


def _canonical(document: Document) -> bytes:
    """A document as bytes that end where it ends; where it was found does not count."""
    if isinstance(document, str):
        return json.dumps(document).encode() + b"\n"
    fields = {name: value for name, value in asdict(document).items() if name != "where"}
    return json.dumps([type(document).__name__, fields], sort_keys=True).encode() + b"\n"


def _num_characters(document: Document) -> int:
    if isinstance(document, Conversation):
        return sum(len(message["content"] or "") for message in document.messages)
    if isinstance(document, Completion):
        return len(document.prompt) + len(document.completion)
    return len(document.text if isinstance(document, TextPiece) else document)


def _local_documents(text: LocalText, found: Survey, split: Split, *, answers: bool) -> Iterator[Document]:
    end = found.num_characters if text.is_plain else found.num_documents
    bounds = {"train": (0, found.cut), "held_out": (found.cut, end), "all": (0, end)}
    if text.is_plain:
        yield from pieces(text, *bounds[split])
        return
    every = (
        document
        for where, value, _ in read_rows(text)
        if value is not None and (document := document_of(value, where=where, answers=answers)) is not None
    )
    yield from itertools.islice(every, *bounds[split])


def _hub_part(spec: str, split: Split) -> Any:
    stream = open_hub_split(spec)
    if split == "all":
        return stream
    return (stream.skip if split == "train" else stream.take)(HELD_OUT_HUB_DOCUMENTS)
