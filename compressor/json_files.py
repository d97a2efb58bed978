"""Reading JSON that someone else may have written: one clear error for whatever is wrong with the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from compressor.errors import CompressExportError, VerificationError

# Far above any config, index, tokenizer or result; far below what would exhaust the machine's memory.
MAX_BYTES = 1 << 28


def read_json(
    path: Path, *, what: str, error: type[CompressExportError] = VerificationError, finite: bool = True
) -> Any:
    """The value that a JSON file holds.

    Args:
        path: A regular file; FIFOs, devices and directories are refused without being opened.
        what: What the file is, such as `the weight index`; begins the error's message.
        error: Class of the error raised for content that cannot be used.
        finite: Refuse `NaN` and `Infinity`, which JSON does not have but Python reads.

    Raises:
        CompressExportError: `error`, for a file that is missing, special, too large, not UTF-8, not JSON,
            nested too deeply, or holds a number that is not finite.
    """

    def refuse(reason: object, expected: object = None) -> CompressExportError:
        return error(f"{what} cannot be read", where=str(path), expected=expected, found=reason)

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise refuse("a directory, FIFO or device", "a regular file")
        if status.st_size > MAX_BYTES:
            raise refuse(f"{status.st_size:,} bytes", f"at most {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_refuse_constant if finite else None)
    except OSError as problem:
        raise refuse(problem.strerror) from problem
    except RecursionError as problem:
        raise refuse("JSON nested too deeply") from problem
    except ValueError as problem:  # a wrong encoding, no JSON, or a number of thousands of digits
        raise refuse(problem) from problem


def read_json_mapping(
    path: Path, *, what: str, error: type[CompressExportError] = VerificationError, finite: bool = True
) -> dict[str, Any]:
    """The object that a JSON file holds; see `read_json`.

    Raises:
        CompressExportError: `error`, also for a list, a string or a number at the top.
    """
    value = read_json(path, what=what, error=error, finite=finite)
    if not isinstance(value, dict):
        raise error(
            f"{what} is not a JSON object", where=str(path), expected="{...}", found=type(value).__name__
        )
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
