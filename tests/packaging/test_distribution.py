"""The wheel holds what it must, and its dependency ranges admit both sets of exact pins."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compressor import __version__
from compressor.pipeline.doctor import CONTAINER_SET

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("compressor", "exporters", "bench")
CONSTRAINTS = ("default", "tensorrt-llm-1.2")
PYTHONS = ("3.10", "3.11", "3.12")
# The TensorRT-LLM 1.2.1 container's pins, but for torch: the CPU build stands in for it (see the file).
CONTAINER_PINS = {**CONTAINER_SET, "setuptools": "<80"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked; the environment's dependencies stay where they are."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def read_metadata(installed: Path) -> Message:
    file = next(installed.glob("compress_export-*.dist-info/METADATA"))
    return Parser().parsestr(file.read_text(encoding="utf-8"))


def pins(name: str, python: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, str] = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert canonicalize_name(requirement.name) not in found, f"{requirement.name} is pinned twice"
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def own_requirements() -> Iterator[Requirement]:
    for line in requires("compress-export") or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": "dev"}):
            yield requirement


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == expected
    assert "bench/report/report.md.j2" in packed


def test_the_metadata(installed: Path) -> None:
    found = read_metadata(installed)

    assert (found["Name"], found["Version"]) == ("compress-export", __version__)
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.10"
    assert set(found.get_all("Provides-Extra")) == {"dev", "lm-eval", "signing", "tensorrt-llm"}
    entry_points = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "compress-export = compressor.cli.main:main" in entry_points
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


def test_the_wheel_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'compress-export'; from compressor.cli.main import main; main()"
    arguments = ["plan", "llama3.1-8b", "--target", "4b", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert '"num_parameters": 4512746496' in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_wheel_installs_without_an_index_or_a_repository(wheel: Path, tmp_path: Path) -> None:
    """By pip, from a folder; its program then runs beside the libraries that are there."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--find-links", str(wheel.parent), "--target", str(site), "compress-export[signing]"]
    subprocess.run(command, check=True, cwd=elsewhere)
    for words in (["schema"], ["completion", "bash"], ["plan", "smollm2-135m", "--target", "60%"]):
        done = subprocess.run(
            [sys.executable, str(site / "bin" / "compress-export"), *words],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(site)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout
    assert list(elsewhere.iterdir()) == []


def test_tensorrt_llm_is_never_needed() -> None:
    for line in requires("compress-export") or []:
        requirement = Requirement(line)
        if "tensorrt" in requirement.name:
            assert requirement.marker is not None
            assert "extra" in str(requirement.marker)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_ranges_admit_the_exact_pins(name: str, python: str) -> None:
    pinned = pins(name, python)
    for requirement in own_requirements():
        pin = pinned.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pin), f"{requirement} does not admit {pin}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_container_set_is_the_containers(python: str) -> None:
    pinned = pins("tensorrt-llm-1.2", python)
    for name in CONTAINER_PINS.keys() - {"torch"}:
        wanted = Requirement(f"{name}{CONTAINER_PINS[name]}").specifier
        assert wanted.contains(pinned[name]), f"{name} {pinned[name]} is not the container's {wanted}"
    assert pins("default", python)["torch"] == pinned["torch"] == "2.13.0"


def test_this_environment_is_one_of_the_sets() -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    own = {canonicalize_name(requirement.name) for requirement in own_requirements()}
    found = {name: version(name).partition("+")[0] for name in own}

    assert any(found == {name: pins(each, python)[name] for name in own} for each in CONSTRAINTS)
