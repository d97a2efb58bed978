"""A run's own documents against what its stages recorded: manifest, recipe and plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.core.errors import UsageError, VerificationError
from compressor.data.files import is_local
from compressor.data.sources import source_fingerprint
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.planning.plan import planned_model, read_plan
from compressor.recipe.recipe import Prune, Recipe
from compressor.runs.artifact import ModelArtifact, read_artifact
from compressor.runs.inputs import comparable, differences, is_local_fingerprint
from compressor.runs.manifest import StageEntry
from exporters.checks.equality import expect_equal

# A stage whose whole configuration is one section of the recipe.
_SECTION_OF_STAGE = {"distill": "distill", "correct": "distill", "generate": "distill.generate"}
# What a run takes from elsewhere than the recipe.
_RESOLVED = {("prune", "shape")}
_STORED = "teacher_logits"


def check_manifest_entry(where: Path, entry: StageEntry | None, artifact: ModelArtifact) -> None:
    """Refuse a stage in `where` that is not the one that the manifest lists; None where it lists none."""
    if entry is None:
        raise VerificationError(
            "the manifest does not list this part of the run",
            where=str(where),
            hint="delete it, then repeat the command that made this run",
        )
    what, hint = "the manifest lists another stage than is there", "--restart-from this stage makes it again"
    for field in ("stage", "fingerprint"):
        listed, found = getattr(entry, field), getattr(artifact, field)
        expect_equal(what, listed, found, where=f"{where}: {field}", hint=hint)


def check_recipe(file: Path, recipe: Recipe, artifact: ModelArtifact) -> None:
    """Refuse a recipe that is not the one that a stage was made by.

    A text that was moved, and stored logits, are compared by their fingerprints.
    """
    inputs = artifact.inputs
    plain = recipe.model_dump(mode="json")
    recorded = _sections(artifact, plain)
    said = {name: _within(_section(plain, name), section) for name, section in recorded.items()}
    moved = _moved(file, said, recorded, inputs)
    before = _config(comparable({**inputs, "config": recorded}))
    now = _config(comparable({**inputs, **moved, "config": said}))
    pairs: list[tuple[str, object, object]] = [("seed", recipe.seed, inputs.get("seed"))]
    if artifact.stage == "prune":  # which records these only where they are not as usual
        # A cut, one of several, that removes no layer was made without any choice about them.
        of_layers = ("depth_importance",) if artifact.details.get("removed_layers") else ()
        for name in (*of_layers, "hidden"):
            chosen = recorded["prune"].get(name, getattr(Prune(), name))
            pairs.append((f"prune.{name}", getattr(recipe.prune, name), chosen))
    pairs += [
        (f"{name}.{key}", now[name].get(key), value)
        for name, section in before.items()
        for key, value in section.items()
        if (name, key) not in _RESOLVED
    ]
    for field, found, expected in pairs:
        if found != expected:
            raise VerificationError(
                "the recipe is not the one that this run was made by",
                where=f"{file}: {field}",
                expected=f"{expected}, as the {artifact.stage} stage recorded",
                found=found,
            )


def _config(inputs: Mapping[str, object]) -> dict[str, dict[str, object]]:
    config = inputs["config"]
    assert isinstance(config, dict)
    return config


def _sections(artifact: ModelArtifact, plain: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The recipe's sections that a stage recorded, by their dotted names."""
    config: dict[str, object] = artifact.inputs.get("config", {})
    whole = None if "interleave" in config else _SECTION_OF_STAGE.get(artifact.stage)
    sections = {whole: config} if whole else {name: config[name] for name in config if name in plain}
    return {name: section for name, section in sections.items() if isinstance(section, dict)}


def _section(plain: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for part in name.split("."):
        plain = plain[part]
    return plain


def _within(said: Any, recorded: Any) -> Any:
    """Of what the recipe says, the fields that are recorded; others decide nothing in that stage."""
    if isinstance(said, Mapping) and isinstance(recorded, Mapping):
        return {key: _within(said.get(key), value) for key, value in recorded.items()}
    return said


def _moved(
    file: Path, said: Mapping[str, Any], recorded: Mapping[str, Any], inputs: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """`data` and `others` of a stage's inputs, with what the recipe names by another path than it did."""
    data, others = dict(inputs.get("data", {})), dict(inputs.get("others", {}))
    for field, found, expected in _leaves(said, recorded):
        if found == expected or not isinstance(found, str) or not isinstance(expected, str):
            continue
        try:
            if is_local_fingerprint(data.get(expected, "")) and is_local(found):
                data[found] = source_fingerprint(found)
            elif field.endswith(f".{_STORED}") and _STORED in others:
                others[_STORED] = read_artifact(Path(found)).fingerprint
        except (UsageError, VerificationError) as error:
            raise VerificationError(
                "the recipe names another path than was read, and what is there cannot be compared",
                where=f"{file}: {field}",
                expected=data.get(expected, others.get(_STORED)),
                found=f"{found}: {error.what}",
                hint="put it there, or back where it was and repeat the run with its path",
            ) from error
    return {"data": data, "others": others}


def _leaves(said: Any, recorded: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What is recorded, value by value, beside what the recipe says in its place."""
    if isinstance(said, dict) and isinstance(recorded, dict):
        for key in recorded:
            yield from _leaves(said.get(key), recorded[key], f"{field}.{key}" if field else key)
    elif isinstance(said, list) and isinstance(recorded, list):
        for index, (one, other) in enumerate(zip(said, recorded, strict=False)):
            yield from _leaves(one, other, f"{field}.{index}")
    else:
        yield field, said, recorded


def check_cuts(directory: Path, plan_file: str) -> None:
    """Refuse a plan of several cuts whose shapes are not those that were cut, or a training out of turn."""
    file = directory / plan_file
    cuts = read_plan(file).cuts
    for number, cut in enumerate(cuts, start=1):
        name = "" if number == len(cuts) else f"{cut.name}-"
        pruned, trained = (directory / "stages" / f"{name}{stage}" for stage in ("prune", "distill"))
        where, hint = f"{file}: {cut.name}", "repeat the command that made this run"
        if pruned.is_dir():
            expected = planned_model(dims_of_config(read_config(pruned)))
            found = {"shape": cut.shape, "parameters": cut.num_parameters}
            wanted = {"shape": expected.dims, "parameters": expected.num_parameters}
            expect_equal("the plan says another cut than there is", wanted, found, where=where, hint=hint)
        if trained.is_dir():
            part = read_artifact(trained).inputs.get("config", {}).get("part")
            expect_equal(
                "another part of the training follows this cut", number, part, where=where, hint=hint
            )


def check_plan(directory: Path, plan_file: str, *, teacher: Path | None, student: Path) -> None:
    """Refuse a plan whose shapes are not those of teacher and student."""
    file = directory / plan_file
    plan = read_plan(file)
    for role, planned, checkpoint in (
        ("teacher", plan.teacher, teacher),
        ("student", plan.student, student),
    ):
        if checkpoint is None:
            continue
        expected = planned_model(dims_of_config(read_config(checkpoint)))
        changed = differences(planned.to_json(), expected.to_json())
        if changed:
            raise VerificationError(
                f"the plan says another {role} than there is",
                where=f"{file}: {role}",
                found="; ".join(changed),
                hint="repeat the command that made this run: it writes the plan again",
            )
