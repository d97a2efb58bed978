"""A fast part of `make corruptions`: every kind of artifact, the faults that hide best, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corruptions.artifacts import RUN, Made, make_artifacts
from tests.corruptions.report import misses
from tests.corruptions.suite import CONTROL, FAULTS, Outcome, run_suite

FAST = frozenset(
    {
        *("flipped bit", "k and v", "layers permuted", "rope", "eps", "heads regrouped", "end token"),
        *("scale doubled", "third non-zero", "branch, flipped bit", "truncated", "edited card"),
        *("perplexity", "likelihood of a window", "export in another precision"),
        *("Q/DQ pair dropped", "reply, a loop", "likelihood of a reply", "a line of the replies lost"),
        *("norm constant", "rotation, an entry, named", "rotation, a component reflected, named"),
        *("record deleted", "verification deleted", "record of bad types"),
        *("exports/onnx deleted", "stages/distill deleted", "edited recipe", "a stage's record deleted"),
    }
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("corruptions")
    return {artifact.kind: artifact for artifact in make_artifacts(root, tiny_text)}


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_faults_are_found(kind: str, made: dict[str, Made], tmp_path: Path) -> None:
    outcomes = list(run_suite([made[kind]], tmp_path, only=FAST))
    assert len(outcomes) > 4
    missed = misses(outcomes)
    assert not missed, "\n".join(map(describe, missed))


def test_what_a_recipe_demands_is_what_a_run_made(made: dict[str, Made]) -> None:
    from compressor.recipe.recipe import load_recipe
    from exporters.checks.run import demanded

    run = made[RUN].directory
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert set(demanded(load_recipe(run / "recipe.yaml", {}))) == set(stages)


def describe(outcome: Outcome) -> str:
    said = outcome.message or "nothing"
    wanted = "exit code 0" if outcome.fault == CONTROL else "exit code 8"
    return f"{outcome.kind}: {outcome.fault} ({outcome.way}): {wanted}, not {outcome.exit_code}: {said}"
