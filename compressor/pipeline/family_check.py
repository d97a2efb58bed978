"""What `verify` asks of a family: that its pages say what its members' own records say."""

from __future__ import annotations

from pathlib import Path

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.pipeline.family import FAMILY_FILE, FamilyRecord, family_card, member_record
from compressor.pipeline.report import CARD_FILE
from compressor.pipeline.summary import read_summary

_HINT = "repeat the command that made this family: it writes this again"


def is_family(directory: Path) -> bool:
    """Whether a directory holds a family."""
    return (directory / FAMILY_FILE).is_file()


def read_family(directory: Path) -> FamilyRecord:
    """The record of a finished family, whose members are all there.

    Raises:
        UsageError: for a family that is not finished.
        VerificationError: for a record that cannot be used, or a member that is missing.
    """
    file, what = directory / FAMILY_FILE, "the family's record"
    record = as_record(FamilyRecord, read_json_mapping(file, what=what), what=what, where=file, hint=_HINT)
    if not record.complete:
        raise UsageError(
            "this family is not finished",
            where=str(directory),
            expected=f"{len(record.targets)} models",
            found=len(record.members),
            hint="repeat the command that began it",
        )
    for member in record.members:
        is_name = Path(member.name).name == member.name and member.name not in (".", "..")
        if not is_name or not (directory / member.name).is_dir():
            raise VerificationError(
                "a member of this family is missing",
                where=str(file),
                expected="a directory beside this file",
                found=member.name[:80],
                hint="repeat the command that made this family: it makes what is missing",
            )
    return record


def check_family(directory: Path, record: FamilyRecord) -> None:
    """Compare a family's record with its members' runs, which are checked already, and its page with it.

    Raises:
        VerificationError: naming what differs.
    """
    for listed in record.members:
        made = member_record(listed.target, listed.name, read_summary(directory / listed.name))
        for field, found in listed.to_json().items():
            _expect(made.to_json()[field], found, where=f"{directory / FAMILY_FILE}: {listed.name}: {field}")
    page = directory / CARD_FILE
    found_page = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else None
    _expect(family_card(record), found_page, where=str(page))


def _expect(expected: object, found: object, *, where: str) -> None:
    if found != expected:
        is_page = isinstance(expected, str) and "\n" in expected
        raise VerificationError(
            "the family's pages say something else than its members' records",
            where=where,
            expected=None if is_page else expected,
            found="missing" if found is None else "another text" if is_page else found,
            hint=_HINT,
        )
