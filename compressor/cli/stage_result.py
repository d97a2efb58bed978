"""What commands of single stages do around their stage: run it with the call's choices, show what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from compressor.api import Execution
from compressor.cli.from_recipe import Call
from compressor.cli.render import stage_text
from compressor.cli.session import Show, emit, work
from compressor.runs.artifact import ModelArtifact


def stage(
    call: Call,
    show: Show,
    run: Callable[[Execution, Path], ModelArtifact],
    *,
    text: Callable[[ModelArtifact], str] = stage_text,
    result: Callable[[ModelArtifact], Mapping[str, object]] | None = None,
    default: Path | None = None,
) -> None:
    """Run a stage of `compressor.api` and print its record.

    Args:
        call: The command's recipe and choices.
        show: What it prints.
        run: The stage.
        text: Its result for people.
        result: Its result for programs; by default the stage's record.
        default: Where it is written if the call does not say so.
    """
    with work(show, call.recipe.device) as console:
        artifact = run(call.execution(console), call.out_dir or default or Path())
    emit((result or record_of)(artifact), show, text(artifact))


def record_of(artifact: ModelArtifact) -> dict[str, object]:
    """A stage command's JSON document."""
    return {
        "schema": "compress-export/stage/1",
        "stage": artifact.stage,
        "path": str(artifact.path),
        "fingerprint": artifact.fingerprint,
        "lineage": list(artifact.lineage),
        "num_parameters": artifact.num_parameters,
        "details": artifact.details,
    }
