"""`--target A,B`: each smaller model from the one before, every member a run of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.main import invoke
from tests.integration.command import digests, succeed, write_recipe

Capture = pytest.CaptureFixture[str]
Finished = tuple[Path, dict[str, Any]]  # a run's directory and its summary
MEMBERS = ("59pct", "71k")


@pytest.fixture(scope="module")
def arguments(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    recipe = write_recipe(
        tmp_path_factory.mktemp("recipes") / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        prune={"shape": None},
        target="59%,71k",
        distill={"tokens": 512},
        export={"formats": ["huggingface"]},
        evaluate={"size": 2},
    )
    return ["run", "--config", str(recipe)]


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("families") / "out"
    return out, succeed(*arguments, "-o", out)


def test_each_member_is_a_run_made_from_the_one_before(finished: Finished) -> None:
    out, family = finished
    assert family["complete"] is True
    assert [entry["name"] for entry in family["members"]] == list(MEMBERS)
    for entry in family["members"]:
        for name in ("manifest.json", "recipe.yaml", "plan.json", "README.md", "student/model.safetensors"):
            assert (out / entry["directory"] / name).is_file()
    first, second = (read_json(out / name / "student" / "artifact.json") for name in MEMBERS)
    assert second["lineage"][: len(first["lineage"])] == first["lineage"]
    manifests = [read_json(out / name / "plan.json") for name in MEMBERS]
    assert manifests[1]["teacher"]["num_parameters"] == first["num_parameters"]
    distilled = read_json(out / MEMBERS[1] / "stages" / "distill" / "artifact.json")
    pruned = read_json(out / MEMBERS[1] / "stages" / "prune" / "artifact.json")
    assert distilled["inputs"]["teacher"] == pruned["inputs"]["source"]


def test_the_family_page_repeats_its_members_numbers(finished: Finished) -> None:
    out, family = finished
    assert family == read_json(out / "family.json")
    card = (out / "README.md").read_text(encoding="utf-8")
    for entry in family["members"]:
        evaluation = read_json(out / entry["name"] / "stages" / "evaluate" / "evaluation.json")
        assert entry["perplexity"] == evaluation["models"]["distilled"]["perplexity"]
        assert f"{entry['num_parameters']:,} | {entry['perplexity']:.3f}" in card
        assert f"[{entry['name']}]({entry['name']}/README.md)" in card
    assert "Not made yet" not in card


def test_a_family_is_verified_with_all_its_members(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    moved = Path(shutil.copytree(finished[0], tmp_path / "moved"))
    assert invoke(["verify", str(moved)]) == 0
    shown = capsys.readouterr().out
    for name in MEMBERS:
        assert f"{moved / name / 'student'}: export" in shown
    record, page = (moved / name for name in ("family.json", "README.md"))
    weights = moved / MEMBERS[1] / "student" / "model.safetensors"
    for file, harmed, named in (
        (
            record,
            record.read_bytes().replace(b'"training_tokens": 512', b'"training_tokens": 513', 1),
            "tokens",
        ),
        (page, page.read_bytes().replace(b"512", b"51", 1), "README.md"),
        (page, None, "missing"),
        (weights, weights.read_bytes()[:-1] + b"\x00", "model.safetensors"),
    ):
        whole = file.read_bytes()
        file.unlink() if harmed is None else file.write_bytes(harmed)
        assert whole != harmed
        assert invoke(["verify", str(moved)]) == 8
        assert named in capsys.readouterr().err
        file.write_bytes(whole)
    listed = record.read_text()
    for name in (".", "..", "../moved", str(moved), "gone"):
        record.write_text(listed.replace(f'"name": "{MEMBERS[0]}"', f'"name": "{name}"'))
        assert invoke(["verify", str(moved)]) == 8
        assert "is missing" in capsys.readouterr().err
    record.write_text(listed)
    shutil.rmtree(moved / MEMBERS[1])
    assert invoke(["verify", str(moved)]) == 8
    assert "is missing" in capsys.readouterr().err
    record.write_bytes(record.read_bytes().replace(b'"complete": true', b'"complete": false'))
    assert invoke(["verify", str(moved)]) == 2
    assert "not finished" in capsys.readouterr().err


def test_the_same_command_skips_what_is_there_and_makes_what_is_not(
    finished: Finished, arguments: list[str], capsys: Capture
) -> None:
    out, family = finished
    students = [f"{member}/student" for member in MEMBERS]
    made = digests(out, students)
    longer = [*arguments, "--target", "59%,71k,48k", "-o", str(out), "--resume", "--json"]
    assert invoke(longer) == 0
    captured = capsys.readouterr()
    extended = json.loads(captured.out)
    assert extended["members"][:2] == family["members"]
    assert extended["members"][2]["num_parameters"] < family["members"][1]["num_parameters"]
    assert digests(out, students) == made
    assert captured.err.count("distill: stages/distill: already there") == 2


def test_a_family_keeps_out_of_other_directories(
    arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert invoke([*arguments, "-o", str(tmp_path)]) == 2
    assert "family.json" in capsys.readouterr().err
    assert invoke([*arguments, "-o", str(tmp_path / "new"), "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
