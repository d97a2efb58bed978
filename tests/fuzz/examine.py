"""One example read under guard, and what was wrong about it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compressor.cli import main
from compressor.core.errors import ResourceError
from tests.fuzz.guard import (
    MEMORY_BYTES,
    TOKEN,
    ForbiddenError,
    Guard,
    files_with_token,
    forget_peak,
    limited_cpu,
    resident_bytes,
    tree_of,
)
from tests.fuzz.kind import Example, Finished, Kind, Seed, Workspace

_OURS = ("compressor", "exporters", "bench")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What an example did that none may do; equal `signature`s are one fault."""

    signature: str
    what: str


class _Errors:
    """The errors behind the exit codes of commands, which the messages do not name the place of."""

    def __init__(self) -> None:
        self.last: BaseException | None = None
        self._fail = main._fail
        main._fail = self._kept

    def _kept(self, error: BaseException, *, debug: bool) -> int:
        self.last = error
        return self._fail(error, debug=debug)


@dataclass(kw_only=True)
class Examiner:
    """Reads examples of one kind in one workspace."""

    kind: Kind
    seeds: list[Seed]
    workspace: Workspace
    guard: Guard

    def __post_init__(self) -> None:
        self._errors = _Errors()
        self.said = ""  # the messages of the last example's commands

    def examine(self, example: Example) -> tuple[int, Fault | None]:
        """The worst exit code, and the first fault."""
        self.workspace.fill(self.seeds[example.seed], example)
        self.kind.prepare(self.workspace)
        before = self._outside()
        forget_peak()
        held, self._errors.last = resident_bytes(), None
        done: list[Finished] = []
        try:
            with self.guard.watching(), limited_cpu(self.guard):
                done += self.kind.read(self.workspace, example.way)
        except ForbiddenError:
            pass
        except Exception as error:  # noqa: BLE001 - a reader that is no command failed
            return 1, _unexpected(error)
        grown = resident_bytes("VmHWM") - held
        code = max((one.exit_code for one in done), default=0)
        self.said = "\n".join(one.stderr for one in done)
        faults = (*self._faults(done), *self._left(before))
        if grown > MEMORY_BYTES:
            faults = (*faults, Fault(signature="memory", what=f"took {grown >> 20} MiB"))
        return code, next(iter(faults), None)

    def _faults(self, done: list[Finished]) -> Iterator[Fault]:
        for seen in self.guard.seen:
            yield Fault(signature=seen[:60].replace(str(self.workspace.root), ""), what=seen)
        for one in done:
            if one.exit_code == 1 and self._errors.last is not None:
                yield _unexpected(self._errors.last)
            if one.exit_code == ResourceError.exit_code and self._errors.last is not None:
                yield _unexpected(self._errors.last)
            if one.exit_code not in (0, 2, 3, 4, 5, 6, 7, 8, 9):
                yield Fault(signature=f"exit code {one.exit_code}", what=one.stderr[-300:])
            if one.exit_code and not one.stderr.strip():
                yield Fault(signature="no message", what=f"exit code {one.exit_code} without a message")
            if "Traceback" in one.stderr or "\x1b" in one.stderr:
                yield Fault(signature="message", what=one.stderr[-300:])
            if TOKEN in one.stdout + one.stderr:
                yield Fault(signature="token shown", what="the token is in the output")

    def _left(self, before: dict[str, tuple[int, int, int]]) -> Iterator[Fault]:
        """What is on the disk afterwards that was not to be there."""
        after = self._outside()
        changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
        if changed:
            yield Fault(signature="changed outside", what=", ".join(changed[:3]))
        for path in files_with_token(self.workspace.root):
            yield Fault(signature="token written", what=path)
        for problem in self.kind.check(self.workspace):
            yield Fault(signature=problem[:40], what=problem)

    def _outside(self) -> dict[str, tuple[int, int, int]]:
        """Everything in the workspace that no command may touch."""
        root = self.workspace.root
        may = [self.workspace.run, root / "tmp", *([self.workspace.input] if self.kind.writes_input else [])]
        found = tree_of(root)
        return {
            path: facts
            for path, facts in found.items()
            if not any(Path(path).is_relative_to(one) for one in may)
        }


def _unexpected(error: BaseException) -> Fault:
    """An error by its class and by the last place of ours that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if any(f"{_ROOT}/{package}/" in one.filename for package in _OURS)]
    places = [f"{Path(one.filename).name}:{one.name}" for one in (*ours[-1:], *frames[-1:])]
    signature = f"{type(error).__name__} in {' > '.join(dict.fromkeys(places))}"
    return Fault(signature=signature, what=f"{type(error).__name__}: {str(error)[:300]}")
