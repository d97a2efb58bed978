"""The model card of a finished run against the records that its numbers were read from.

A run may have been moved, and its teacher may be gone: names of models and texts are not compared,
everything else is, line by line.
"""

from __future__ import annotations

import re
from pathlib import Path

from compressor.core.errors import VerificationError
from compressor.pipeline.report import CARD_FILE, model_card
from compressor.pipeline.summary import RunSummary, summary_of
from compressor.planning.plan import read_plan
from compressor.recipe.recipe import load_recipe
from compressor.runs.artifact import read_artifact
from compressor.runs.manifest import PLAN_FILE, RECIPE_FILE, read_manifest
from exporters.checks.run import demanded

_NAMES = re.compile(r"`[^`]*`|^# .*$|^base_model: .*$|^- (calibration|training|evaluation) text: .*$")


def check_card(out_dir: Path) -> None:
    """Refuse a card that says something else than the run's records.

    Raises:
        VerificationError: naming the first line that differs, or a record that cannot be used.
    """
    file = out_dir / CARD_FILE
    if not file.is_file():
        raise VerificationError(
            "the model card is missing",
            where=str(file),
            hint="repeat the command that made this run: it writes it",
        )
    expected = _comparable(model_card(out_dir, _read_summary(out_dir)))
    found = _comparable(file.read_text(encoding="utf-8", errors="replace"))
    for number in range(max(len(expected), len(found))):
        wanted, line = (lines[number] if number < len(lines) else None for lines in (expected, found))
        if wanted != line:
            raise VerificationError(
                "the model card says something else than the run's records",
                where=f"{file}, line {number + 1}",
                expected=wanted,
                found=line,
                hint="repeat the command that made this run: it writes the card again",
            )


def _read_summary(out_dir: Path) -> RunSummary:
    manifest, plan = read_manifest(out_dir), read_plan(out_dir / PLAN_FILE)
    recipe = load_recipe(out_dir / RECIPE_FILE, {})
    made = {place: read_artifact(out_dir / place) for place in demanded(recipe)}
    return summary_of(out_dir, recipe=recipe, plan=plan, manifest=manifest, made=made)


def _comparable(card: str) -> list[str]:
    return [_NAMES.sub("", line) for line in card.splitlines()]
