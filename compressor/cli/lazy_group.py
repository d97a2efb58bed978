"""A group of commands that are imported when they are called, so that its help shows at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from click_default_group import DefaultGroup

from compressor.core.lazy import resolve


class LazyGroup(DefaultGroup):
    """A group with a default command, made from a table of commands."""

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str]], **named: Any) -> None:
        """A group of click.

        Args:
            arguments: As for click.
            table: By name, where a command is ("module:attribute"), and its line in the group's help.
            named: As for click.
        """
        super().__init__(*arguments, **named)
        self._table = table

    def list_commands(self, _context: click.Context) -> list[str]:
        """The names, in the table's order."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now; else the default one."""
        name = cmd_name if cmd_name in self._table else self.default_cmd_name
        if name not in self.commands:
            self.add_command(resolve(self._table[name][0]), name)
        found: click.Command | None = super().get_command(ctx, cmd_name)
        return found

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table's lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._table.items()])
