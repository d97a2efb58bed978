"""Names that a kill leaves while something is deleted, and names of users that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.runs import discarding
from compressor.runs.discarding import discard, is_leftover, remove_leftovers

LEFT = ("prune.discarded-0", "distill.partial.discarded-12", "a b.discarded-3", ".discarded-0")
OTHERS = (
    *("prune", "prune.partial", "prune.discarded", "prune.discarded-", "prune.discarded-x"),
    *("prune.discarded-0.txt", "prune.discarded-0 (copy)", "prune-discarded-0", "xdiscarded-0"),
    "old.discarded-0/prune",
)


@pytest.mark.parametrize("name", [*LEFT, *OTHERS])
def test_only_what_a_kill_leaves_is_a_leftover(name: str) -> None:
    assert is_leftover(Path("stages") / name) is (name in LEFT)


def test_what_discarding_really_leaves_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the renaming and the deletion, twice."""
    with monkeypatch.context() as patch:
        patch.setattr(discarding.shutil, "rmtree", lambda _path: None)
        for _ in range(2):
            (tmp_path / "prune").mkdir()
            discard(tmp_path / "prune")
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2
    assert all(is_leftover(path) for path in left)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_a_users_with_the_name_of_a_discard_stays(tmp_path: Path) -> None:
    (tmp_path / "made.discarded-0").write_text("a user's")
    (tmp_path / "made.discarded-1").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["made.discarded-0"]
