"""`compress-export completion`: a script for a shell, and what a shell is told that could follow."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

SHELLS = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/config.fish"}
# How options say that they take files.
_DIRECTORIES, _FILES = ("DIR",), ("PATH", "SOURCE", "TASK")


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that lets SHELL complete commands, options and their choices.

    For bash, zsh or fish, once or in the file that the shell starts with:

    \b
      eval "$(compress-export completion bash)"      ~/.bashrc
      eval "$(compress-export completion zsh)"       ~/.zshrc
      compress-export completion fish | source       ~/.config/fish/config.fish
    """
    from compressor.cli.main import COMPLETION_VARIABLE, PROGRAM

    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, COMPLETION_VARIABLE).source())


def complete_value(choices: Iterable[str], metavar: str | None, incomplete: str) -> list[CompletionItem[str]]:
    """What an option's value could be: one of its choices, also behind a comma, or a file."""
    before, comma, begun = incomplete.rpartition(",")
    is_list = metavar is not None and metavar.endswith(",...")
    start = before + comma if is_list else ""
    begun = begun if is_list else incomplete
    found = [CompletionItem(start + name) for name in choices if name.startswith(begun)]
    if found or metavar not in (*_DIRECTORIES, *_FILES):
        return found
    return [CompletionItem(incomplete, type="dir" if metavar in _DIRECTORIES else "file")]


def complete_model(
    _ctx: click.Context, _argument: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """What a MODEL could be: an alias, else a file or a directory."""
    from compressor.models.presets import PRESETS

    found = [CompletionItem(alias) for alias in PRESETS if alias.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]
