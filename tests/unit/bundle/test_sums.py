"""Sums of a bundle, and the signature that lies beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.bundle.sums import SIGNATURE_FILE, SUMS_FILE, write_sums


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A directory of one document, with its sums and what stands for their signature."""
    (tmp_path / "README.md").write_text("first\n")
    write_sums(tmp_path, [], ["README.md"])
    (tmp_path / SIGNATURE_FILE).write_text("{}")
    return tmp_path


def test_the_same_sums_leave_both_files_untouched(signed: Path) -> None:
    warnings: list[str] = []
    files = (signed / SUMS_FILE, signed / SIGNATURE_FILE)
    before = [(file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    write_sums(signed, [], ["README.md"], on_warning=warnings.append)
    assert [(file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in files] == before
    assert warnings == []


def test_other_sums_remove_the_signature_and_say_so(signed: Path) -> None:
    warnings: list[str] = []
    (signed / "README.md").write_text("second\n")
    write_sums(signed, [], ["README.md"], on_warning=warnings.append)
    assert not (signed / SIGNATURE_FILE).exists()
    (warning,) = warnings
    assert f"{SIGNATURE_FILE} was removed" in warning
    assert f"compress-export publish {signed} --sign" in warning
    write_sums(signed, [], ["README.md"], on_warning=warnings.append)
    assert len(warnings) == 1
