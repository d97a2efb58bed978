"""The Dockerfile's stages and the workflow examples, as far as files alone show it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporters.tensorrt_llm.versions import CONTAINER
from tests.unit.test_documents import names_known_options

ROOT = Path(__file__).resolve().parents[2]
# docs/ and the Dockerfile are not part of the image that may run these tests.
WORKFLOWS = sorted((ROOT / "docs" / "ci").glob("*.yml"))
BASH = shutil.which("bash")
# The dev extra puts actionlint beside the interpreter, which need not be on PATH.
ACTIONLINT = shutil.which("actionlint", path=str(Path(sys.executable).parent)) or shutil.which("actionlint")
NEEDS_ACTIONLINT = pytest.mark.skipif(ACTIONLINT is None, reason="no actionlint: it comes with the dev extra")
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


IMAGE_LISTS = "numpy==1.26.4\npip==25.0\ntorch==2.10.0a0+nv25.12\n"
STAND_IN_PIP = """\
#!{bash}
# No pip: it lists what the test wrote, and "installs" by replacing the list.
case "$*" in
  *list*) cat {state} ;;
  *install*) cat {after} > {state}; cp {scratch}/constraints.txt {seen} ;;
esac
"""


@pytest.mark.parametrize(
    ("after", "builds"),
    [
        (IMAGE_LISTS + "compress-export==0.1.0\n", True),
        (IMAGE_LISTS.replace("numpy==1.26.4", "numpy==2.3.0"), False),
        (IMAGE_LISTS.replace("torch==2.10.0a0+nv25.12", "torch==2.10.0"), False),
    ],
    ids=["added", "numpy replaced", "torch replaced"],
)
def test_the_gpu_stage_fails_when_a_pin_of_the_image_was_replaced(
    tmp_path: Path, after: str, builds: bool
) -> None:
    """The stage's own command, with a stand-in for the image's Python."""
    (command,) = re.findall(r"^RUN (python3 -m pip list.*?[^\\])$", stages()["gpu"], re.MULTILINE | re.DOTALL)
    files = {name: tmp_path / name for name in ("state", "after", "seen")}
    files["state"].write_text(IMAGE_LISTS, encoding="utf-8")
    files["after"].write_text(after, encoding="utf-8")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(STAND_IN_PIP.format(bash=BASH, scratch=scratch, **files), encoding="utf-8")
    python.chmod(0o755)
    assert BASH is not None
    done = subprocess.run(
        [BASH, "-c", command.replace("/tmp/", f"{scratch}/")],  # noqa: S108 - the image's, in the stage
        env={"PATH": f"{python.parent}:/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is builds, done.stderr
    constraints = files["seen"].read_text(encoding="utf-8").splitlines()
    assert constraints == [*IMAGE_LISTS.splitlines(), "onnxruntime-genai==0.14.1", "pyarrow==19.0.1"]


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
    commands = "\n".join(scripts(ROOT / "docs" / "ci" / "engines.yml"))
    assert "--require-engine" in commands
    assert "--runtime tensorrt-llm" in commands  # the run measures the engines itself
    for workflow in by_name.values():
        assert workflow["permissions"] == {"contents": "read"}
        uses = [step.get("uses", "") for job in workflow["jobs"].values() for step in job["steps"]]
        assert any(use.startswith("actions/upload-artifact@") for use in uses)


def test_a_release_is_judged_verified_and_then_published() -> None:
    """In this order: what a step refuses, no later one passes on."""
    workflow = load(ROOT / "docs" / "ci" / "release.yml")
    steps = workflow["jobs"]["release"]["steps"]
    text = "\n".join(step.get("run", "") for step in steps)
    order = ("run --config", "gate", "bench compare", "evaluate", "verify", "clean", "verify", "publish")
    places: list[int] = []
    for name in order:
        places.append(text.index(f"compress-export {name}", places[-1] + 1 if places else 0))
    (published,) = [step for step in steps if "publish" in step.get("run", "")]
    # A condition without a status function holds only where every step before succeeded.
    assert published["if"] == "${{ github.ref_type == 'tag' }}"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_and_options_in_workflows_exist(workflow: Path) -> None:
    joined = "\n".join(scripts(workflow)).replace("\\\n", " ")
    lines = re.findall(r"compress-export (\w+)((?: [^|>\n]+)?)", joined)
    targets = re.findall(r"^make ([\w-]+)$", joined, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert lines or targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for found in lines:
        names_known_options(*found)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_in_workflows_are_shell(workflow: Path) -> None:
    assert BASH is not None
    for script in scripts(workflow):
        done = subprocess.run([BASH, "-n"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def lint(*workflows: Path) -> Any:
    assert ACTIONLINT is not None
    command = [ACTIONLINT, "-config-file", ROOT / "docs" / "ci" / "actionlint.yaml", "-oneline", *workflows]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


@NEEDS_ACTIONLINT
def test_actionlint_has_nothing_to_say() -> None:
    done = lint(*WORKFLOWS)
    assert done.returncode == 0, done.stdout


@NEEDS_ACTIONLINT
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("github.ref_type", "github.ref_kind", "ref_kind"),
        ("retention-days", "retention", "retention"),
        ("[self-hosted, linux, x64, gpu]", "[self-hosted, linux, x64, gpus]", "gpus"),
    ],
)
def test_actionlint_finds_a_mistake(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    text = (ROOT / "docs" / "ci" / "engines.yml").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "engines.yml").write_text(text.replace(right, wrong), encoding="utf-8")
    done = lint(tmp_path / "engines.yml")
    assert done.returncode == 1
    assert message in done.stdout
