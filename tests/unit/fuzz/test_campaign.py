"""What hostile input must not do, done on purpose by a reader of our own: the campaign must see it."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz.campaign import LEAST_EXAMPLES, hunt
from tests.fuzz.guard import TOKEN, TOKEN_VARIABLES
from tests.fuzz.kind import Finished, Kind, Seed, Target, Workspace
from tests.fuzz.mutations import MARK
from tests.fuzz.pages import html_problems, markdown_problems

Misdeed = Callable[[Workspace], object]
_FILE = "input.txt"


def executes(workspace: Workspace) -> None:
    code = workspace.input / "steps.py"
    exec(compile("x = 1", str(code), "exec"))  # noqa: S102 - what is to be seen


def shows_a_link(workspace: Workspace) -> None:
    workspace.out.with_suffix(".md").write_text(f"[a](http://{MARK}.invalid)\n", encoding="utf-8")


MISDEEDS: dict[str, tuple[Misdeed, str]] = {
    "writes outside": (lambda w: (w.root / "outside" / "new.txt").write_text("x"), "opens for writing"),
    "renames outside": (lambda w: (w.root / "outside" / "precious.txt").rename(w.run / "x"), "os.rename"),
    "removes the input": (lambda w: (w.input / _FILE).unlink(), "os.remove"),
    "executes": (executes, "compiles"),
    "compiles a text": (lambda _: eval(f"'{MARK}'"), "compiles"),  # noqa: S307 - what is to be seen
    "unpickles": (lambda _: pickle.loads(pickle.dumps(Path("x"))), "unpickles"),  # noqa: S301
    "starts a program": (lambda _: subprocess.run(["true"], check=False), "starts a program"),  # noqa: S607
    "asks the network": (lambda _: socket.getaddrinfo("example.invalid", 80), "asks the network"),
    "keeps the token": (lambda w: w.out.write_text(os.environ[TOKEN_VARIABLES[0]]), "token written"),
    "takes memory": (lambda _: bytearray(400 << 20), "memory"),
    "ends the process": (lambda _: os._exit(7), "ends the process: 7"),
    "fails otherwise": (lambda _: {}["absent"], "KeyError"),
    "makes a link": (shows_a_link, "link_open in Markdown"),
}


def toy(misdeed: Misdeed) -> Kind:
    """A reader that behaves unless the letter `x` stands in its input."""

    def read(workspace: Workspace, way: int) -> Iterator[Finished]:
        content = (workspace.input / _FILE).read_bytes()
        if b"x" in content:
            misdeed(workspace)
        yield Finished(exit_code=2 if b"?" in content else 0, stdout="", stderr="error: no")

    def check(workspace: Workspace) -> Iterator[str]:
        for path in workspace.run.glob("*.md"):
            yield from markdown_problems(path.read_text(encoding="utf-8"))

    return Kind(name="toy", seeds=lambda _: [], read=read, check=check)


def seeds() -> list[Seed]:
    target = Target(file=_FILE, change=lambda draw, _: draw(st.sampled_from((b"a", b"?", b"xyz", b"x"))))
    return [Seed(files={_FILE: b"a"}, targets=(target,))]


@pytest.mark.parametrize("name", MISDEEDS)
def test_a_misdeed_is_seen_and_its_input_kept(name: str) -> None:
    misdeed, signature = MISDEEDS[name]
    tally = hunt(toy(misdeed), seeds(), seconds=0, seed=0)
    assert [fault["signature"] for fault in tally.faults if signature in fault["signature"]], tally.faults
    kept = tally.faults[0]["files"]
    assert not kept or b"x" in bytes.fromhex(kept[_FILE])


def test_what_behaves_is_counted_by_its_exit_code() -> None:
    tally = hunt(toy(lambda _: None), seeds(), seconds=0, seed=0)
    assert tally.faults == []
    assert set(tally.exit_codes) == {0, 2}
    assert sum(tally.exit_codes.values()) == tally.examples >= LEAST_EXAMPLES


def test_a_directory_of_its_own_may_be_made_and_removed() -> None:
    def work(workspace: Workspace) -> None:
        (workspace.out / "stage" / "inner").mkdir(parents=True)
        (workspace.out / "stage" / "inner" / "stage.json").write_text("{}", encoding="utf-8")
        (workspace.out / "stage").rename(workspace.out / "made")
        shutil.rmtree(workspace.out / "made")

    assert hunt(toy(work), seeds(), seconds=0, seed=0).faults == []


def test_a_seed_that_is_refused_is_no_seed() -> None:
    refusing = [Seed(files={_FILE: b"?"}, targets=seeds()[0].targets)]
    with pytest.raises(RuntimeError, match="toy failed"):
        hunt(toy(lambda _: None), refusing, seconds=0, seed=0)


def test_what_computes_for_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.guard.CPU_SECONDS", 0.2)

    def compute(_: Workspace) -> None:
        end = time.process_time() + 60
        while time.process_time() < end:
            pass

    tally = hunt(toy(compute), seeds(), seconds=0, seed=0)
    assert [fault["what"] for fault in tally.faults] == ["computes for more than 0 s"]


@pytest.mark.parametrize(
    ("page", "found"),
    [
        (f"<p title='{MARK}'>&lt;script&gt;{MARK}</p>", False),
        (f"<p>{MARK}<script>1</script></p>", True),
        (f"<p class='{MARK}'></p>", True),
        ("<p onclick='x'></p>", True),
        (f"<a href='javascript:{MARK}'>x</a>", True),
        (f"<!-- {MARK} -->", True),
    ],
)
def test_elements_and_attributes_of_a_text_are_seen(page: str, found: bool) -> None:
    assert bool(html_problems(page)) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"`{MARK}` \\<b>{MARK}", False),
        (f"<b title='{MARK}'>", True),
        (f"![x]({MARK})", True),
        (f"```{MARK}\n```", True),
    ],
)
def test_what_becomes_more_than_text_in_markdown_is_seen(text: str, found: bool) -> None:
    assert bool(list(markdown_problems(text))) is found


def test_the_token_is_like_one_of_the_hub() -> None:
    assert TOKEN.startswith("hf_")
