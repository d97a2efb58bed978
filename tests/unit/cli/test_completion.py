"""Completion: what a real shell is told, and what could follow in the middle of a command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.choices.formats import FORMATS
from compressor.choices.losses import LOSSES
from compressor.cli.main import COMMANDS, COMPLETION_VARIABLE, PROGRAM, cli, invoke
from compressor.models.presets import PRESETS

Capture = pytest.CaptureFixture[str]


def following(*words: str) -> list[str]:
    """What could stand in place of the last word."""
    from click.shell_completion import BashComplete

    found = BashComplete(cli, {}, PROGRAM, COMPLETION_VARIABLE).get_completions(list(words[:-1]), words[-1])
    return [item.value if item.type == "plain" else item.type for item in found]


def test_commands() -> None:
    assert following("") == list(COMMANDS)
    assert following("re") == ["reconstruct"]


@pytest.mark.parametrize("command", [("run", "m"), ("m",), ("plan",)])
def test_options_with_and_without_the_word_run(command: tuple[str, ...]) -> None:
    assert following(*command, "--target-sp") == ["--target-speedup"]
    assert "--train-data" in following(*command, "--")


def test_choices_also_behind_a_comma() -> None:
    assert following("distill", "--loss", "") == list(LOSSES)
    assert following("m", "--formats", "") == list(FORMATS)
    assert following("m", "--formats", "huggingface,onnx-s") == [
        f"huggingface,{name}" for name in FORMATS if name.startswith("onnx-s")
    ]
    assert following("export", "m", "--format", "tensorrt-l") == ["tensorrt-llm"]
    assert following("bench", "m", "--runtime", "onnxr") == ["onnxruntime"]


def test_models_files_and_directories() -> None:
    assert following("prune", "smol") == [alias for alias in PRESETS if alias.startswith("smol")]
    assert following("prune", "./mod") == ["file"]
    assert following("prune", "m", "--scores", "./a") == ["dir"]
    assert following("prune", "m", "--calib-data", "t") == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell: str, capsys: Capture) -> None:
    assert invoke(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"{COMPLETION_VARIABLE}={shell}_complete" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)
    assert invoke(["completion", "tcsh"]) == 2


def test_bash_completes(tmp_path: Path, capsys: Capture) -> None:
    """With the program as it is installed: a file of its name on PATH."""
    program = tmp_path / PROGRAM
    program.write_text(f"#!{sys.executable}\nfrom compressor.cli.main import main\nmain()\n")
    program.chmod(0o755)
    assert invoke(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = f"COMP_WORDS=({PROGRAM} distill --loss rev) COMP_CWORD=3\n_compress_export_completion {PROGRAM}\n"
    done = subprocess.run(
        [str(shutil.which("bash"))],
        input=f'{script}\n{words}echo "${{COMPREPLY[@]}}"\n',
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.stdout == "reverse-kl\n", done.stderr
