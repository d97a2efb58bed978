"""What a terminal is sent, and what a log is: bars are for terminals alone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import logging
from compressor.core.console import Console, shown_on_stderr
with shown_on_stderr({level}):
    console = Console()
    console.info("[bold]begun[/bold] \\x1b[31m")
    with console.progress("counting", 3) as tick:
        for _ in range(3):
            tick("a [note]")
    console.warn("careful")
print("result")
"""
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-9]|9[0-7])(?:;\d+)*m")


def shown(*, terminal: bool, level: str = "logging.INFO", **environment: str) -> str:
    """Everything that a process writes on stderr, on a terminal of its own or into a pipe."""
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    reading, writing = pty.openpty() if terminal else os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(level=level)],
        stdout=subprocess.PIPE,
        stderr=writing,
        check=True,
        text=True,
        env={**plain, "TERM": "xterm-256color", **environment},
    )
    os.close(writing)
    assert done.stdout == "result\n"
    found = b""
    try:
        while part := os.read(reading, 1 << 16):
            found += part
    except OSError:  # how a terminal that nobody holds any more ends
        pass
    os.close(reading)
    return found.decode()


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}], ids=str)
def test_a_log_holds_lines_and_no_control_characters(environment: dict[str, str]) -> None:
    found = shown(terminal=False, **environment)
    assert found.splitlines() == ["[bold]begun[/bold] \\x1b[31m", "warning: careful"]


def test_a_terminal_shows_a_bar_in_colours_unless_it_is_asked_not_to() -> None:
    assert COLOUR.search(shown(terminal=True))
    without = shown(terminal=True, NO_COLOR="1")
    assert "counting" in without
    assert not COLOUR.search(without)


def test_quiet_and_dumb_terminals_have_no_bar() -> None:
    assert shown(terminal=True, level="logging.WARNING").splitlines() == ["warning: careful"]
    assert "\x1b" not in shown(terminal=True, TERM="dumb")


def test_modules_of_the_console_need_no_terminal_library_to_be_imported() -> None:
    code = "import sys; import compressor.core.console; assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
