"""The release gates of finished runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.core.errors import UsageError
from compressor.pipeline.family import FamilyRecord
from compressor.pipeline.gate_choices import require_gate_choices
from compressor.recipe.recipe import Gates, load_recipe
from compressor.runs.manifest import MANIFEST_FILE, RECIPE_FILE

if TYPE_CHECKING:
    from compressor.gates.record import GateReport
    from compressor.pipeline.summary import RunSummary


def gate(directory: Path, *, gates: Gates | None = None) -> GateReport:
    """Judge a finished run by its recipe's gates, or by others.

    What fails is in the report; nothing is raised for it.

    Raises:
        UsageError: for what is no run, no gate at all, or a gate on what the run did not measure.
    """
    from compressor.pipeline.summary import read_summary

    require_run(directory)
    recipe = load_recipe(directory / RECIPE_FILE, {})
    chosen = recipe.model_copy(update={"gates": gates or recipe.gates})
    try:
        require_gate_choices(chosen)
    except UsageError as error:
        raise UsageError(
            error.what,
            where=(error.where or "").replace("--gate-", "--"),
            hint="leave this gate out: the run is finished, and did not measure what it needs",
        ) from None
    report = read_summary(directory, gates=chosen.gates).gates
    if report is None:
        raise UsageError(
            "no gate is set",
            where=str(directory),
            hint="set one, such as --perplexity-ratio 1.2, or the recipe's section gates",
        )
    return report


def require_run(directory: Path) -> None:
    """Refuse (UsageError) a directory that is no run's."""
    if not (directory / MANIFEST_FILE).is_file():
        raise UsageError("there is no run here", where=str(directory), hint="name the directory of a run")


def gates_of(result: RunSummary | FamilyRecord) -> Iterator[tuple[str, GateReport]]:
    """The directory and the verdicts of a run that has gates, or of every member of a family."""
    if not isinstance(result, FamilyRecord):
        if result.gates is not None:
            yield result.out_dir, result.gates
        return
    for member in result.members:
        directory = Path(result.out_dir) / member.directory
        if load_recipe(directory / RECIPE_FILE, {}).gates.demanded():
            yield str(directory), gate(directory)
