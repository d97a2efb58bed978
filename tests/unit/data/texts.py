"""Texts as files, and what a source reads of them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.core.errors import UsageError
from compressor.data.conversations import render_all
from compressor.data.rows import Conversation, Document
from compressor.data.sources import Documents, survey
from compressor.data.tokenise import tokenise_all
from tests.tiny_models import make_tokenizer

TEXTS = ['one, "quoted" river', "two\nlines of stone", "drei Wörter — 三つ 🙂", "NA", "  spaces kept  "]


def chat(**contents: Any) -> list[dict[str, Any]]:
    """Messages from contents by role."""
    return [{"role": role, "content": content} for role, content in contents.items()]


def share_gpt(**values: Any) -> dict[str, Any]:
    """A row as ShareGPT writes it, from values by speaker."""
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in values.items()]}


def with_template(template: Any) -> Any:
    """The tiny tokenizer with a chat template of its own."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def write_rows(path: Path, *rows: Any) -> Path:
    """JSON lines; a row of None is a blank line."""
    path.write_text("".join(("" if row is None else json.dumps(row)) + "\n" for row in rows))
    return path


def write_packed(path: Path, content: str) -> Path:
    """A file, compressed where its name says so."""
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def texts_of(spec: str | Path, split: Any = "all") -> list[Any]:
    return list(Documents(str(spec), split))


def refused(path: Path, message: str | None = None) -> UsageError:
    with pytest.raises(UsageError, match=message) as caught:
        survey(str(path))
    return caught.value


def plain_text(spec: str | Path, split: Any = "all") -> str:
    return "".join(piece.text for piece in texts_of(spec, split))


def read_row(directory: Path, row: Any) -> Any:
    """The document of a row in a file of its own."""
    (document,) = texts_of(write_rows(directory / "row.jsonl", row))
    return document


def render(document: Document, tokenizer: Any) -> str:
    return render_all([document], tokenizer)[0].text


def with_mask(tokenizer: Any, document: Document | list[Any]) -> list[list[int]]:
    """Token ids of a document, or a conversation's messages, and which of them are responses."""
    document = Conversation(messages=document) if isinstance(document, list) else document
    (found,) = tokenise_all("x", [document], tokenizer, loss_on="responses")
    return [found.ids.tolist(), found.mask.tolist()]


def counted(tokenizer: Any, document: Document | list[Any]) -> str:
    """The text of the tokens that are responses."""
    ids, mask = with_mask(tokenizer, document)
    return tokenizer.decode([token for token, counts in zip(ids, mask, strict=True) if counts])


def write_table(path: Path, column: str = "text") -> Path:
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.table({column: TEXTS, "id": list(range(len(TEXTS)))}), path)
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("id", column), *enumerate(TEXTS)])
    else:
        rows = [{"id": number, column: text} for number, text in enumerate(TEXTS)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path
