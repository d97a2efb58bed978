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
        CompressExportError: `error`, naming the first field that is missing, unknown or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number
