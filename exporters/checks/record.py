"""A stage's record against itself, and its figures against what was found again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from compressor.artifact import ARTIFACT_FILE, ModelArtifact, fingerprint_of
from compressor.errors import VerificationError
from exporters.record import VERIFICATION_FILE, Verification, read_verification

# Another machine sums in another order; figures are kept with six digits.
_RELATIVE, _ABSOLUTE = 0.05, 1e-5
# Added to an export's details after it was verified.
_ADDED_LATER = ("engine",)


def check_figures(
    directory: Path, artifact: ModelArtifact, *, verification: Verification | None = None
) -> None:
    """Refuse a record that was edited, or that says other figures than were found now.

    Args:
        directory: Where it is.
        artifact: The record.
        verification: What an export's comparison found now, where there was one.

    Raises:
        VerificationError: naming the figure.
    """
    file = directory / ARTIFACT_FILE
    if artifact.fingerprint != fingerprint_of(artifact.inputs):
        raise VerificationError(
            "the record's inputs are not those of its fingerprint",
            where=f"{file}: inputs",
            expected=artifact.fingerprint,
            found=fingerprint_of(artifact.inputs),
        )
    if not (directory / VERIFICATION_FILE).is_file():
        return
    record = read_verification(directory)
    details = {key: value for key, value in artifact.details.items() if key not in _ADDED_LATER}
    _expect(str(file), record, _plain(details))
    if verification is not None:
        checks = record.get("checks")
        _expect(str(directory / VERIFICATION_FILE), _found_now(verification, checks), record)


def _found_now(verification: Verification, recorded_checks: Any) -> dict[str, Any]:
    """What was found now, with the checks that only writing makes."""
    found = _plain(verification.to_dict())
    checks = recorded_checks if isinstance(recorded_checks, dict) else {}
    only_written = {key: value for key, value in checks.items() if key not in found["checks"]}
    return {**found, "checks": {**only_written, **found["checks"]}}


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def _expect(where: str, expected: Any, found: Any, path: str = "") -> None:
    """Compare two trees of figures; measured numbers agree within what another machine may give."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            _expect(where, expected.get(key), found.get(key), f"{path}.{key}" if path else key)
        return
    if isinstance(expected, float) and isinstance(found, int | float):
        same = math.isclose(expected, found, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    else:
        same = expected == found
    if not same:
        raise VerificationError(
            "a recorded figure is not what was found",
            where=f"{where}: {path}",
            expected=expected,
            found=found,
        )
