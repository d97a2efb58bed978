"""Texts as files, and what a source reads of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from compressor.data.sources import documents
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


def texts_of(spec: str | Path) -> list[Any]:
    return list(documents(str(spec), "all"))


def plain_text(spec: str | Path, split: Any = "all") -> str:
    return "".join(piece.text for piece in documents(str(spec), split))  # type: ignore[union-attr]


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
