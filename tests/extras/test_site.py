"""The pages of docs/ as a site, built by mkdocs in an environment of its own; `make extras` names it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guides import DOCS
from tests.unit.test_documents import site_problems

PYTHON = os.environ.get("SITE_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="SITE_PYTHON names no Python with mkdocs-material")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    words = ["-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site]
    return subprocess.run(
        [str(Path(str(PYTHON)).absolute()), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    done = build(DOCS / "site" / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    built = {path.relative_to(tmp_path / "site").with_suffix("") for path in tmp_path.rglob("*.html")}
    assert {Path("results/index") if page == Path("results/README") else page for page in pages} <= built
    assert site_problems(tmp_path / "site") == []
    assert not (tmp_path / "site" / "site").exists()


@pytest.mark.parametrize(
    "added", ["[x](nowhere.md)", "[x](training.md#no-such-heading)", "[x](../README.md)"]
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, added: str) -> None:
    docs = Path(shutil.copytree(DOCS, tmp_path / "docs"))
    with (docs / "cost.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{added}\n")
    done = build(docs / "site" / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "cost.md" in done.stderr
