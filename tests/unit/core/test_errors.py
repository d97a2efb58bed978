"""Every error names what to do next."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.cli import main as command_line
from compressor.core import errors
from compressor.core.errors import CompressExportError, UsageError, VerificationError
from compressor.core.lazy import resolve

ROOT = Path(__file__).resolve().parents[3]
CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, CompressExportError)
}


def made_in(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
            yield node


def test_an_error_has_a_hint_of_its_own_or_the_usual_one_of_its_class() -> None:
    packages = (ROOT / name for name in ("compressor", "exporters", "bench"))
    found = [(path, call) for package in packages for path in package.rglob("*.py") for call in made_in(path)]
    without = [
        f"{path}:{call.lineno}"
        for path, call in found
        if isinstance(call.func, ast.Name)
        and CLASSES[call.func.id].usual_hint is None
        and not any(keyword.arg in ("hint", None) for keyword in call.keywords)
    ]
    assert len(found) > 600
    assert without == []


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (VerificationError("a file is corrupt"), "  try: make it again with --overwrite"),
        (VerificationError("a file is corrupt", hint="do this"), "  try: do this"),
        (UsageError("this is wrong", hint="do that"), "  try: do that"),
    ],
)
def test_a_person_is_told_once_what_to_do(
    error: CompressExportError, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_flags: object) -> None:
        raise error

    monkeypatch.setattr(resolve(command_line.COMMANDS["doctor"][0]), "callback", fail)
    assert command_line.invoke(["doctor"]) == error.exit_code
    said = capsys.readouterr().err
    assert said.count("try:") == 1
    assert said.splitlines()[-1].startswith(last)
