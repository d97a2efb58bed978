"""A kind of hostile input: valid files to begin with, how they are changed, and what reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.mutations import Draw

PRECIOUS = "precious.txt"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file that is changed, by its relative name, and how."""

    file: str
    change: Callable[[Draw, bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Valid input: all its files by relative name, and those of them that are changed.

    `repair` makes sums and seals agree again with what was changed, as one would who knows this tool.
    """

    files: Mapping[str, bytes]
    targets: tuple[Target, ...]
    repair: Callable[[Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One hostile input.

    Attributes:
        seed: Number of the seed.
        changed: Content of its changed files.
        way: A number by which a reader chooses among its commands.
        repaired: Whether sums and seals are made again.
    """

    seed: int
    changed: Mapping[str, bytes]
    way: int
    repaired: bool = False


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The directory of one example after the other.

    Attributes:
        root: Holds everything; beside `input`, `run` and `tmp` a file that nothing may touch.
    """

    root: Path

    @property
    def input(self) -> Path:
        """The hostile files."""
        return self.root / "input"

    @property
    def run(self) -> Path:
        """Where commands write; their output directory is `run/out`."""
        return self.root / "run"

    @property
    def out(self) -> Path:
        """The output directory."""
        return self.run / "out"

    def fill(self, seed: Seed, example: Example) -> None:
        """Lay an example out."""
        for directory in (self.input, self.run, self.root / "tmp"):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        outside = self.root / "outside"
        outside.mkdir(exist_ok=True)
        (outside / PRECIOUS).write_text("precious\n", encoding="utf-8")
        for name, content in {**seed.files, **example.changed}.items():
            path = self.input / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if example.repaired and seed.repair is not None:
            seed.repair(self.input)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input.

    Attributes:
        seeds: Makes valid input below a scratch directory.
        read: Reads an example as the command line does; yields the exit codes of its commands.
        writes_input: Whether the input is a directory that commands may write to.
        programs: Words of command lines that may be started.
        prepare: What is done before an example is read, unwatched.
        check: Looks at what was written, and yields what is wrong with it.
    """

    name: str
    seeds: Callable[[Path], list[Seed]]
    read: Callable[[Workspace, int], Iterator[Finished]]
    writes_input: bool = False
    programs: tuple[str, ...] = ()
    prepare: Callable[[Workspace], None] = lambda _: None
    check: Callable[[Workspace], Iterator[str]] = lambda _: iter(())


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a command ended with."""

    exit_code: int
    stdout: str
    stderr: str


def drawn_example(draw: Draw, seeds: list[Seed]) -> Example:
    """A seed with one or two of its files changed."""
    number = draw(st.integers(0, len(seeds) - 1))
    seed = seeds[number]
    chosen = draw(
        st.lists(st.sampled_from(seed.targets), min_size=1, max_size=2, unique_by=lambda one: one.file)
    )
    changed = {target.file: target.change(draw, seed.files.get(target.file, b"")) for target in chosen}
    repaired = seed.repair is not None and draw(st.booleans())
    return Example(seed=number, changed=changed, way=draw(st.integers(0, 99)), repaired=repaired)


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}
