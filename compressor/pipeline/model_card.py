"""The model card of a finished run against the records that its numbers were read from.

A run may have been moved, and its teacher may be gone: names of models and texts are not compared,
everything else is, line by line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.choices.formats import STUDENT_FORMAT
from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.pipeline.report import CARD_FILE, model_card
from compressor.recipe.recipe import load_recipe
from compressor.runs.artifact import ModelArtifact, read_artifact
from compressor.runs.manifest import MANIFEST_FILE, PLAN_FILE, RECIPE_FILE, STUDENT
from exporters.checks.run import demanded
from exporters.registry import place_of

# Role in the summary -> directory in the run; exports follow, by their format.
_PLACES = {
    "generate": "stages/generate",
    "correct": "stages/correct",
    "distill": "stages/distill",
    "sparsify": "stages/sparsify",
    "recover": "stages/recover",
    "bench": "bench",
}
_EVALUATION = "stages/evaluate"
_NAMES = re.compile(r"`[^`]*`|^# .*$|^base_model: .*$|^- (calibration|training|evaluation) text: .*$")


def summary_of(
    out_dir: Path,
    *,
    plan: dict[str, Any],
    manifest: Mapping[str, Any],
    made: Mapping[str, ModelArtifact],
    exports: Mapping[str, ModelArtifact],
) -> dict[str, Any]:
    """A run's result as one JSON document, from what its stages recorded.

    Args:
        out_dir: The run.
        plan: Its plan.
        manifest: Its manifest.
        made: Artifacts by role: `evaluation`, and those of `_PLACES` that there are.
        exports: Artifacts of exports by format, in the order they were made.
    """
    return {
        "schema": "compress-export/run/1",
        "out_dir": str(out_dir),
        "student": str(out_dir / STUDENT),
        "plan": plan,
        "stages": manifest["stages"],
        **{role: made[role].details if role in made else None for role in _PLACES if role != "bench"},
        "evaluation": made["evaluation"].details,
        "exports": {name: artifact.details for name, artifact in exports.items()},
        "bench": made["bench"].details if "bench" in made else None,
        "versions": manifest["versions"],
        "hardware": manifest["hardware"],
        "warnings": [
            *manifest.get("warnings", ()),
            *(warning for stage in manifest["stages"].values() for warning in stage["warnings"]),
        ],
    }


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
            hint="the command that made the run, again, writes it",
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
            )


def _read_summary(out_dir: Path) -> dict[str, Any]:
    manifest = read_json_mapping(out_dir / MANIFEST_FILE, what="the manifest")
    plan = read_json_mapping(out_dir / PLAN_FILE, what="the plan")
    recipe = load_recipe(out_dir / RECIPE_FILE, {})
    try:
        made = {
            role: read_artifact(out_dir / place)
            for role, place in _PLACES.items()
            if place in demanded(recipe)
        }
        made["evaluation"] = read_artifact(out_dir / _EVALUATION)
        names = dict.fromkeys((STUDENT_FORMAT, *recipe.export_formats()))
        exports = {name: read_artifact(out_dir / place_of(name)) for name in names}
        return summary_of(out_dir, plan=plan, manifest=manifest, made=made, exports=exports)
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            "the run's records do not give a summary",
            where=str(out_dir),
            found=f"{type(error).__name__}: {error}",
        ) from error


def _comparable(card: str) -> list[str]:
    return [_NAMES.sub("", line) for line in card.splitlines()]
