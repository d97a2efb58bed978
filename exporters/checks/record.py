"""A stage's record against itself, and its figures against what was found again."""

from __future__ import annotations

import math
from pathlib import Path

from compressor.core.errors import VerificationError
from compressor.core.json_files import as_record
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, fingerprint_of
from exporters.checks.equality import expect_equal
from exporters.verification.record import VERIFICATION_FILE, ExportRecord, Verification, read_verification

# Another machine sums in another order; figures are kept with six digits.
_RELATIVE, _ABSOLUTE = 0.05, 1e-5
# What a comparison measures moves with the machine's order of summing by more than its own size, where it is
# rounding noise. Its tolerance judges it; the record is held to the same.
_MEASURED = frozenset(
    {
        *("max_abs", "mean_abs", "max_relative", "kl", "kv_cache_max_relative"),
        *("max_relative_to_student_carrying_them", "kl_of_student_with_reversed_layers"),
    }
)
_MEASURED_RELATIVE, _MEASURED_ABSOLUTE = 0.5, 1e-3
# A share of positions moves by the few where two tokens are about as likely; by one, where there are few.
_SHARE, _SHARE_SLACK, _POSITIONS = "top1_agreement", 0.02, "num_positions"
# Only a machine that has the kernels makes these.
_OF_EXECUTION = {"status", "prompts", "logits", "tolerance", "notes"}


def check_figures(
    directory: Path, artifact: ModelArtifact, *, verification: Verification | None = None
) -> None:
    """Refuse a record that was edited, or that says other figures than were found now.

    `verification` is what an export's comparison found now, where there was one.
    """
    file = directory / ARTIFACT_FILE
    what = "the record's inputs are not those of its fingerprint"
    expect_equal(what, artifact.fingerprint, fingerprint_of(artifact.inputs), where=f"{file}: inputs")
    if not (directory / VERIFICATION_FILE).is_file():
        return
    record = read_verification(directory)
    details = as_record(ExportRecord, artifact.details, what="the export's record", where=file)
    _expect(str(file), record.to_json(), details.model_dump(mode="json", exclude={"engine"}))
    if verification is not None:
        expected, recorded = _comparable(verification, record)
        tolerance = verification.tolerance.max_relative if verification.tolerance else 0.0
        _expect(str(directory / VERIFICATION_FILE), expected, recorded, slack=tolerance)


def check_close(expected: float, found: float, *, where: str) -> None:
    """Refuse a recorded number that is not what was computed again from the same values."""
    if not math.isclose(expected, found, rel_tol=1e-9, abs_tol=1e-12):
        raise VerificationError(
            "a recorded figure is not what was found", where=where, expected=expected, found=found
        )


def _comparable(now: Verification, record: Verification) -> tuple[dict[str, object], dict[str, object]]:
    """What was found now and what is recorded, without what only one of the two had to run, or could.

    A machine may lack the kernels, and a source may be bit-equal or not by how its config is written. A check
    that only writing makes is taken from the record.
    """
    if bool(now.logits) != bool(record.logits):
        common = set(now.checks) & set(record.checks)
        one, other = (
            {
                **each.model_dump(mode="json", exclude=_OF_EXECUTION),
                "checks": {name: each.checks[name] for name in common},
            }
            for each in (now, record)
        )
        return one, other
    return {**now.to_json(), "checks": {**record.checks, **now.checks}}, record.to_json()


def _expect(where: str, expected: object, found: object, path: str = "", slack: float | None = None) -> None:
    """Compare two trees of figures; numbers agree within what another machine may give.

    `slack` is, where one side was measured now, the tolerance that the measurement keeps to, 0 without one.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            own = slack
            if slack is not None and key == _SHARE:
                own = max(_SHARE_SLACK, 1 / expected.get(_POSITIONS, 1))
            _expect(where, expected.get(key), found.get(key), f"{path}.{key}" if path else key, own)
        return
    if not _agree(path.rpartition(".")[2], expected, found, slack):
        raise VerificationError(
            "a recorded figure is not what was found",
            where=f"{where}: {path}",
            expected=expected,
            found=found,
        )


def _agree(name: str, expected: object, found: object, slack: float | None) -> bool:
    if not isinstance(expected, float) or not isinstance(found, int | float):
        return bool(expected == found)
    if slack is not None and name == _SHARE:
        return 0 <= found <= 1 and math.isclose(expected, found, rel_tol=0, abs_tol=slack)
    relative, absolute = _RELATIVE, _ABSOLUTE
    if slack is not None and name in _MEASURED:
        relative, absolute = _MEASURED_RELATIVE, max(_MEASURED_ABSOLUTE, slack)
    return math.isclose(expected, found, rel_tol=relative, abs_tol=absolute)
