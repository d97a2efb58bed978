"""Reading JSON that someone else may have written: one clear error for whatever is wrong with the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from compressor.core.errors import CompressExportError, VerificationError
from compressor.core.regular_files import read_regular_text

# Far above any config, index, tokenizer or result; far below what would exhaust the machine's memory.
MAX_BYTES = 1 << 28
# How something is made again where its command is not known.
MAKE_AGAIN = (
    "make it again: the command that wrote it with --overwrite, or in a run with --restart-from its stage"
)
Record = TypeVar("Record")


def read_json(
    path: Path, *, what: str, error: type[CompressExportError] = VerificationError, finite: bool = True
) -> Any:
    """The value that a JSON file holds; see `read_regular_text`.

    `finite` refuses `NaN` and `Infinity`, which JSON does not have but Python reads, and numbers such as
    `1e999` that it reads as infinite.

    Raises:
        CompressExportError: `error`, also for what is not JSON or is nested too deeply.
    """
    text = read_regular_text(path, what=what, error=error, max_bytes=MAX_BYTES)
    try:
        if finite:
            return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        return json.loads(text)
    except (RecursionError, ValueError) as problem:  # no JSON, or a number of thousands of digits
        found = "JSON nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"{what} cannot be read", where=str(path), found=found) from problem


def read_json_mapping(
    path: Path, *, what: str, error: type[CompressExportError] = VerificationError, finite: bool = True
) -> dict[str, Any]:
    """The object that a JSON file holds; see `read_json`. Another value at the top is `error` too."""
    value = read_json(path, what=what, error=error, finite=finite)
    if not isinstance(value, dict):
        raise error(
            f"{what} is not a JSON object", where=str(path), expected="{...}", found=type(value).__name__
        )
    return value


def as_record(
    kind: type[Record],
    values: Any,
    *,
    what: str,
    where: Path,
    error: type[CompressExportError] = VerificationError,
    hint: str | None = None,
) -> Record:
    """What a file of ours holds as a dataclass or a pydantic model, every type checked and none converted.

    Raises:
        CompressExportError: `error`, for what another version wrote, or naming the first field that is
            missing, unknown or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    if (own := _schema_of(kind)) is not None:
        refuse_other_version(values, own, what=what, where=where, error=error, hint=hint)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise error(
            f"{what} is not what was written",
            where=f"{where}: {'.'.join(map(str, first['loc']))}",
            expected=first["msg"],
            found=ascii(first["input"])[:80],
            hint=hint,
        ) from problem


def refuse_other_version(
    values: object,
    expected: str,
    *,
    what: str,
    where: Path,
    error: type[CompressExportError] = VerificationError,
    hint: str | None = None,
    key: str = "schema",
) -> None:
    """Refuse a record whose schema, such as `compress-export/plan/1`, is another version of the expected one.

    A record of another kind, or without a schema, is left to who reads it.

    Raises:
        CompressExportError: `error`, naming both versions and how the record is made again.
    """
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, str) or found == expected:
        return
    if found.rpartition("/")[0] == expected.rpartition("/")[0]:
        raise error(
            f"{what} was written by another version of this tool",
            where=str(where),
            expected=expected,
            found=ascii(found)[1:81],
            hint=hint or MAKE_AGAIN,
        )


def _schema_of(kind: type[Any]) -> str | None:
    """What records of this kind say in their field `schema`."""
    field = getattr(kind, "model_fields", {}).get("schema_id")
    return field.default if field is not None and isinstance(field.default, str) else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number
