"""The Dockerfile's stages and the workflow examples, as far as files alone show it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.cli.main import cli
from exporters.tensorrt_llm.versions import CONTAINER

ROOT = Path(__file__).resolve().parents[2]
# docs/ and the Dockerfile are not part of the image that may run these tests.
WORKFLOWS = sorted((ROOT / "docs" / "ci").glob("*.yml"))
BASH, ACTIONLINT = shutil.which("bash"), shutil.which("actionlint")
DOCKERFILE = ROOT / "Dockerfile"

pytestmark = pytest.mark.skipif(not DOCKERFILE.is_file(), reason="no Dockerfile here: not a checkout")


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        name: f"{base}\n{body}"
        for base, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_stages_drop_root_and_keep_downloads_in_a_volume(name: str) -> None:
    stage = stages()[name]
    assert re.search(r"^USER (compress|1000)$", stage, re.MULTILINE)
    assert stage.index("\nUSER ") > stage.rindex("\nRUN ")
    assert "HF_HOME=/cache/huggingface" in stage
    assert 'VOLUME ["/cache/huggingface"]' in stage
    assert 'ENTRYPOINT ["compress-export"]' in stage


def test_the_gpu_stage_is_the_container_that_engines_are_built_in() -> None:
    assert stages()["gpu"].startswith(CONTAINER + "\n")
    assert "comm -23" in stages()["gpu"]


def load(workflow: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(workflow.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    return document


def scripts(workflow: Path) -> list[str]:
    jobs = load(workflow)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_there_are_examples_for_both_kinds_of_runner() -> None:
    by_name = {workflow.stem: load(workflow) for workflow in WORKFLOWS}
    assert "pull_request" in by_name["plan"]["on"]
    assert {"schedule", "push"} <= set(by_name["engines"]["on"])
    assert by_name["engines"]["on"]["push"]["tags"] == ["v*"]
    assert "self-hosted" in by_name["engines"]["jobs"]["engine"]["runs-on"]
    for workflow in by_name.values():
        assert workflow["permissions"] == {"contents": "read"}
        uses = [step.get("uses", "") for job in workflow["jobs"].values() for step in job["steps"]]
        assert any(use.startswith("actions/upload-artifact@") for use in uses)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_and_options_in_workflows_exist(workflow: Path) -> None:
    joined = "\n".join(scripts(workflow)).replace("\\\n", " ")
    lines = re.findall(r"compress-export (\w+)((?: [^|>\n]+)?)", joined)
    assert lines
    for name, rest in lines:
        if name == "plan" or name in cli.commands:
            known = {option for parameter in cli.commands[name].params for option in parameter.opts}
            assert {word for word in rest.split() if word.startswith("-")} <= known


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_in_workflows_are_shell(workflow: Path) -> None:
    assert BASH is not None
    for script in scripts(workflow):
        done = subprocess.run([BASH, "-n"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(ACTIONLINT is None, reason="no actionlint on PATH")
def test_actionlint_has_nothing_to_say() -> None:
    assert ACTIONLINT is not None
    command = [
        ACTIONLINT,
        "-config-file",
        str(ROOT / "docs" / "ci" / "actionlint.yaml"),
        *map(str, WORKFLOWS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
