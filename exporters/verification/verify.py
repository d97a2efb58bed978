"""What `compress-export verify DIR` does: check any directory, from files alone.

Nothing is repaired. The first thing that is wrong is raised by name; what is returned was checked.

Every recorded file must be the one that was written. Beyond that, content is compared with a second
source wherever there is one, because the sums of a faulty writer are right: with the model that a
directory was made from, and with what a stage recorded from memory before it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.models.sparse.pattern import Pattern
from exporters.checks.directory import Checked, Subject, check_directory
from exporters.checks.origins import Origin
from exporters.checks.run import check_run, is_run, origin_in, read_run, run_of
from exporters.verification.logits import VerifyOptions

SCHEMA = "compress-export/verify/1"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked, and what of a run was not compared; `kind` is `run`, `family`, `stage`, and so on."""

    path: Path
    kind: str
    checked: tuple[Checked, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        checked = [each.to_json() for each in self.checked]
        named = {"schema": SCHEMA, "path": str(self.path), "kind": self.kind}
        return {**named, "checked": checked, "notes": list(self.notes)}


def verify_directory(
    directory: Path,
    *,
    console: Console | None = None,
    device: str = "cpu",
    pattern: Pattern | None = None,
    source: Path | None = None,
) -> VerifyReport:
    """Check a run, a stage's or an export's directory, or any Hugging Face checkpoint.

    In a run everything that its recipe demands must be there, and is compared with what it was made from. A
    directory of its own is, where its `source` is given or it lies in a run. A checkpoint made elsewhere has
    no record: its structure is checked, and its status says so.

    Args:
        directory: What to check.
        console: Progress.
        device: Torch device name of comparisons.
        pattern: Demand this pattern of every linear layer of a checkpoint's decoder, recorded or not; of
            an export that has no checkpoint's config, of what its record states.
        source: The checkpoint that `directory` was made from; of a run, its teacher.

    Raises:
        UsageError: when there is nothing to check, or a run is not finished.
        VerificationError: naming the first file, tensor or figure that is wrong.
    """
    options = VerifyOptions(console=console or Console(), device=device)
    if source is not None and not source.is_dir():
        raise UsageError(
            "this source does not exist",
            where=str(source),
            hint="give --source the directory of the checkpoint that DIR was made from, or leave it out to "
            "check DIR by itself",
        )
    notes: list[str] = []
    if is_run(directory):
        kind = "run"
        checked, notes = check_run(directory, options, teacher=source, pattern=pattern)
    else:
        checked = [check_directory(_subject(directory, source, pattern), options)]
        kind = checked[0].kind
    return VerifyReport(path=directory, kind=kind, checked=tuple(checked), notes=tuple(notes))


def _subject(directory: Path, source: Path | None, pattern: Pattern | None) -> Subject:
    """A directory by itself, with its source where a run says it."""
    run, origin = run_of(directory), Origin(path=source)
    if run is not None and source is None:
        origin = origin_in(read_run(run, None), directory.absolute().relative_to(run).as_posix())
    return Subject(directory=directory, origin=origin, must_be_ours=run is not None, pattern=pattern)
