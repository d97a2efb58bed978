"""Under which terms a base model may be passed on, and what its licence asks of what is made from it.

Known are the licences of published models by their names on the hub; otherwise what a checkpoint says of
itself: the front matter of its model card, or the header of a GGUF file. This is no legal advice: the text of
the licence is copied beside the student, and goes before what is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from compressor.core.errors import CompressExportError
from compressor.core.records import Record

UNKNOWN = "unknown"
_CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
_MARK = "---"
_GGUF_FIELD = "general.license"


class Terms(Record):
    """The licence of a base model.

    Attributes:
        identifier: As the hub calls it; `unknown` where nothing says it.
        known_from: What says so.
        notices: Sentences that must stand on the model's page.
        name_begins: What the name of a model made from it must begin with.
    """

    identifier: str
    known_from: str
    notices: tuple[str, ...] = ()
    name_begins: str | None = None

    def allows_name(self, name: str) -> bool:
        """Whether what is made from it may be called so."""
        return self.name_begins is None or name.startswith(self.name_begins)


@dataclass(frozen=True, kw_only=True)
class _Row:
    identifier: str
    models: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    name_begins: str | None = None


def _community(version: str, built_with: str, begins: str, *models: str) -> _Row:
    """A community licence of Meta: section 1.b asks for a notice, a display and a name."""
    notice = (
        f"Llama {version} is licensed under the Llama {version} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    return _Row(
        identifier=f"llama{version}",
        models=models,
        notices=(built_with, notice),
        name_begins=begins,
    )


# What each publisher states on the hub.
_ROWS = (
    _community("3", "Built with Meta Llama 3", "Llama 3", "meta-llama/Meta-Llama-3-*"),
    *(
        _community(version, "Built with Llama", "Llama", f"meta-llama/*Llama-{version}-*")
        for version in ("3.1", "3.2", "3.3", "4")
    ),
    _Row(identifier="apache-2.0", models=("HuggingFaceTB/SmolLM2-*", "mistralai/Mistral-Nemo-*")),
)


def terms_of(hub_id: str | None, directory: Path, *, gguf: Path | None = None) -> Terms:
    """The terms of a model: by its name on the hub, or by what the files in `directory` or `gguf` say."""
    for row in _ROWS:
        if hub_id is not None and any(fnmatchcase(hub_id, pattern) for pattern in row.models):
            return _terms(row.identifier, known_from=f"the publisher of {hub_id}")
    for identifier, known_from in (
        (_of_card(directory / _CARD), "its model card"),
        (_of_gguf(gguf), "its GGUF file"),
    ):
        if identifier is not None:
            return _terms(identifier, known_from=known_from)
    return Terms(identifier=UNKNOWN, known_from="nothing that came with it")


def _terms(identifier: str, *, known_from: str) -> Terms:
    row = next((row for row in _ROWS if row.identifier == identifier), _Row(identifier=identifier))
    return Terms(
        identifier=identifier,
        known_from=known_from,
        notices=row.notices,
        name_begins=row.name_begins,
    )


def _of_card(file: Path) -> str | None:
    """The field `license` of a model card's front matter."""
    if not file.is_file() or file.stat().st_size > _MAX_CARD_BYTES:
        return None
    first, *rest = file.read_text("utf-8", errors="replace").splitlines() or [""]
    if first.strip() != _MARK or _MARK not in rest:
        return None
    try:
        front = yaml.safe_load("\n".join(rest[: rest.index(_MARK)]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    found = front.get("license") if isinstance(front, dict) else None
    if found == "other":  # the name stands beside it then
        found = front.get("license_name")
    return found.strip().lower() if isinstance(found, str) and found.strip() else None


def _of_gguf(file: Path | None) -> str | None:
    if file is None or not file.is_file():
        return None
    from compressor.models.gguf.header import read_header

    try:
        found = read_header(file).fields.get(_GGUF_FIELD)
    except CompressExportError:
        return None
    return found.strip().lower() if isinstance(found, str) and found.strip() else None
