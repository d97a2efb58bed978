"""A run's own documents against what its stages recorded: manifest, recipe and plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.artifact import ModelArtifact
from compressor.errors import VerificationError
from compressor.json_files import read_json_mapping
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.recipe import Recipe

# A stage whose whole configuration is one section of the recipe.
_SECTION_OF_STAGE = {"distill": "distill", "correct": "distill"}
# What a run takes from elsewhere: the resolved shape, and formats that are stages of their own.
_RESOLVED = {("prune", "shape")}


def check_manifest_entry(where: Path, entry: Any, artifact: ModelArtifact) -> None:
    """Refuse a stage that is not the one that the manifest lists.

    Args:
        where: The stage's directory.
        entry: The manifest's of this stage; None where it lists none.
        artifact: The stage's record.

    Raises:
        VerificationError: naming the field.
    """
    if entry is None:
        raise VerificationError("the manifest does not list this part of the run", where=str(where))
    found: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    wanted = {"stage": artifact.stage, "fingerprint": artifact.fingerprint}
    for field, value in wanted.items():
        if found.get(field) != value:
            raise VerificationError(
                "the manifest lists another stage than is there",
                where=f"{where}: {field}",
                expected=found.get(field),
                found=value,
            )


def check_recipe(file: Path, recipe: Recipe, artifact: ModelArtifact) -> None:
    """Refuse a recipe that is not the one that a stage was made by.

    Raises:
        VerificationError: naming the field.
    """
    plain = recipe.model_dump(mode="json")
    config = artifact.inputs.get("config", {})
    section = _SECTION_OF_STAGE.get(artifact.stage)
    sections = {section: config} if section else {key: config[key] for key in config if key in plain}
    pairs = [("seed", recipe.seed, artifact.inputs.get("seed"))]
    for name, recorded in sections.items():
        if isinstance(recorded, dict):
            pairs += [(f"{name}.{path}", *both) for path, *both in _leaves(plain[name], recorded, name)]
    for field, said, recorded in pairs:
        if said != recorded:
            raise VerificationError(
                "the recipe is not the one that this run was made by",
                where=f"{file}: {field}",
                expected=f"{recorded}, as the {artifact.stage} stage recorded",
                found=said,
            )


def _leaves(
    said: Mapping[str, Any], recorded: Mapping[str, Any], section: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in recorded:
        if (section, key) not in _RESOLVED:
            yield key, said.get(key), recorded[key]


def check_plan(directory: Path, plan_file: str, *, teacher: Path | None, student: Path) -> None:
    """Refuse a plan whose shapes are not those of teacher and student.

    Raises:
        VerificationError: naming the field.
    """
    file = directory / plan_file
    plan = read_json_mapping(file, what="the plan")
    for role, checkpoint in (("teacher", teacher), ("student", student)):
        if checkpoint is None:
            continue
        planned = plan.get(role)
        for field, value in dims_of_config(read_config(checkpoint)).to_dict().items():
            found = planned.get(field) if isinstance(planned, dict) else None
            if found != value:
                raise VerificationError(
                    f"the plan says another {role} than there is",
                    where=f"{file}: {role}.{field}",
                    expected=value,
                    found=found,
                )
