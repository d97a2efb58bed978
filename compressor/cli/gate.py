"""`compress-export gate`: whether a finished run may be released."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compressor.cli.environment import layer_of
from compressor.cli.from_recipe import section_options
from compressor.cli.session import Show, emit, showing, work

if TYPE_CHECKING:
    from compressor.gates.record import GateReport

_OPTIONS = section_options("gates")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@showing
def gate(directory: Path, show: Show, **flags: object) -> None:
    """Judge the finished run in DIRECTORY by the gates of its recipe; options replace or add to them.

    Nothing is measured: the figures are those that the run recorded. Exit code 6 if accuracy fails, 7 if
    speed, memory or size does.

    For example:

    \b
      compress-export gate OUT --perplexity-ratio 1.2 --speedup 1.3x
    """
    from compressor import api
    from compressor.api.gating import require_run
    from compressor.cli.render import table
    from compressor.gates.report import HEADER, gate_rows
    from compressor.recipe.recipe import load_recipe
    from compressor.runs.manifest import RECIPE_FILE

    given = {
        option.dotted: value for option in _OPTIONS if (value := flags[str(option.name)]) not in (None, ())
    }
    spoken = {option.dotted: option.flag for option in _OPTIONS}
    with work(show, "cpu"):
        require_run(directory)
        recipe, environment = directory / RECIPE_FILE, layer_of(_OPTIONS)
        is_changed = bool(given or environment.values)
        changed = load_recipe(recipe, given, flags=spoken, environment=environment) if is_changed else None
        report = api.gate(directory, gates=changed.gates if changed else None)
    emit(report.to_json(), show, table(HEADER, gate_rows(report)))
    refuse_failed_gates([(str(directory), report)])


gate.params[1:1] = _OPTIONS


def refuse_failed_gates(reports: Iterable[tuple[str, GateReport]]) -> None:
    """End with exit code 6 or 7 if a gate of a run failed.

    Raises:
        AccuracyGateError, SpeedGateError: naming what was required and what was found.
    """
    from compressor.gates.report import gate_error

    for where, report in reports:
        error = gate_error(report, where=where)
        if error is not None:
            raise error
