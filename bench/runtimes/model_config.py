"""What runtimes read of the JSON files beside a model: which kind it is, sections, the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.runtimes.base import Vocabulary
from compressor.core.errors import UsageError, VerificationError

CONFIG_FILE = "config.json"
_SPECIAL_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def require_file(directory: Path, name: str, *, holds: str) -> None:
    """Refuse (UsageError) a directory without the file that shows the kind."""
    if not (directory / name).is_file():
        raise UsageError(
            f"this directory holds no {holds}",
            where=str(directory),
            expected=name,
            hint=f"name a directory that holds {name}, or choose another --runtime",
        )


def section(part: Mapping[str, object], name: str, *, what: str) -> Mapping[str, object]:
    """An object inside a JSON file; one that is not there is empty, something else a VerificationError."""
    found = part.get(name, {})
    if not isinstance(found, Mapping):
        raise VerificationError(
            f"section {name!r} of {what} is not a JSON object",
            expected="{...}",
            found=ascii(found)[:80],
            hint="write the file again with the tool that made it",
        )
    return found


def vocabulary_of(config: Mapping[str, object], *, where: Path) -> Vocabulary:
    """Vocabulary size and special ids; a field of these may be absent, null, one id or a list.

    A config that names no vocabulary size is a VerificationError.
    """
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise VerificationError(
            "the model's config names no vocabulary size",
            where=str(where),
            expected="an integer vocab_size",
            found=ascii(size)[:80],
            hint="export the model again",
        )
    special = {token_id for field in _SPECIAL_FIELDS for token_id in _ids(config.get(field))}
    return Vocabulary(size=size, special_token_ids=tuple(sorted(special)))


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int)]
