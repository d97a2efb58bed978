"""`SHA256SUMS`: one line for every file of a run's bundle, in the format of `sha256sum --check`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from compressor.core.errors import VerificationError
from compressor.core.regular_files import read_regular_text, stays_below
from compressor.runs.artifact import ARTIFACT_FILE, read_artifact, sha256_of_file, write_text
from compressor.runs.cleaned import CLEANED_FILE, files_left, is_cleaned, read_cleaned

SUMS_FILE = "SHA256SUMS"
SIGNATURE_FILE = "SHA256SUMS.sigstore.json"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MAX_BYTES = 1 << 24
_REDO = "repeat the command that made this run: it writes the sums again"


def write_sums(
    out_dir: Path,
    places: Iterable[str],
    documents: Iterable[str],
    *,
    on_warning: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the sums of the files in directories of artifacts, and of the run's own documents.

    What an artifact recorded when it was written is taken from its record; nothing large is read again. Where
    the sums are the same as before nothing is written; else a signature of the earlier ones is removed, with
    a warning.
    """
    sums = {name: sha256_of_file(out_dir / name) for name in documents}
    for place in places:
        directory = out_dir / place
        sums |= {f"{place}/{name}": digest for name, digest in recorded_sums(directory).items()}
    file, signature, text = out_dir / SUMS_FILE, out_dir / SIGNATURE_FILE, sums_text(sums)
    if file.is_file() and file.read_bytes() == text.encode():
        return
    if signature.is_file():
        signature.unlink()
        on_warning(
            f"{SIGNATURE_FILE} was removed: the sums that it signed have changed; sign again with "
            f"compress-export publish {out_dir} --sign, or --private-key FILE"
        )
    write_text(file, text)


def sums_text(sums: Mapping[str, str]) -> str:
    """Sums by relative name as `sha256sum --check` reads them."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def recorded_sums(directory: Path) -> dict[str, str]:
    """sha256 of every file that an artifact's directory should hold now, its record among them."""
    own = [ARTIFACT_FILE, *([CLEANED_FILE] if is_cleaned(directory) else [])]
    left = {name: record["sha256"] for name, record in files_left(read_artifact(directory)).items()}
    return {**left, **{name: sha256_of_file(directory / name) for name in own}}


def read_sums(out_dir: Path) -> dict[str, str]:
    """The sums by relative name.

    Raises:
        VerificationError: when they are missing, or not of that format; when a name leaves the directory.
    """
    file, what = out_dir / SUMS_FILE, "the sums of the bundle"
    if not file.is_file():
        raise VerificationError(f"{what} are missing", where=str(file), hint=_REDO)
    text = read_regular_text(file, what=what, error=VerificationError, max_bytes=_MAX_BYTES)
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        name = match[2] if match else ""
        if match is None or name in found or not stays_below(name):
            raise VerificationError(
                f"{what} are not as they were written",
                where=f"{file}, line {number}",
                expected="64 hexadecimal digits, two spaces and the name of a file, each once",
                found=ascii(line)[:120],
                hint=_REDO,
            )
        found[name] = match[1]
    return found


def deleted_files(out_dir: Path, places: Iterable[str]) -> set[str]:
    """Relative names of the files that were deleted of cleaned artifacts, or were about to be."""
    return {
        f"{place}/{name}"
        for place in places
        if is_cleaned(out_dir / place)
        for name in read_cleaned(out_dir / place).deleted
    }


def check_sums(out_dir: Path, *, already: Mapping[str, str], deleted: Collection[str] = ()) -> int:
    """Refuse a bundle of which a file is missing or not as summed; returns the number of files.

    `already` are sums of files whose contents were compared with them just now, by relative name: these are
    not read again. `deleted` are names that may be missing.

    Raises:
        VerificationError: naming the first such file.
    """
    sums = read_sums(out_dir)
    for name, expected in sums.items():
        path = out_dir / name
        if name in deleted and not path.is_file():
            continue
        if not path.is_file():
            raise VerificationError("a file of the bundle is missing", where=str(path), hint=_REDO)
        found = already[name] if name in already else sha256_of_file(path)
        if found != expected:
            raise VerificationError(
                "a file of the bundle is not the one that was summed",
                where=str(path),
                expected=f"sha256 {expected}",
                found=f"sha256 {found}",
                hint=_REDO,
            )
    return len(sums)
