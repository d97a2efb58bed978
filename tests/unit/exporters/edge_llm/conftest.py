"""Tiny students and their exports, as the stand-in for NVIDIA's converter writes them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.quantization.amax import FP8_DIRECTORY
from exporters.edge_llm.reader import GRAPH_DIRECTORY
from tests import edge_llm_stand_in
from tests.oracles.record_edge_llm import CASES, make_case


@dataclass(frozen=True)
class Exported:
    """A student, and the directory of its export."""

    student: Path
    directory: Path

    @property
    def graph(self) -> Path:
        return self.directory / GRAPH_DIRECTORY


def export(name: str, root: Path) -> Exported:
    case = CASES[name]
    student = make_case(case, root / "student")
    checkpoint = student / FP8_DIRECTORY if case.fp8 else student
    edge_llm_stand_in.write(checkpoint, root / "export" / GRAPH_DIRECTORY)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(student / file, root / "export" / file)
    return Exported(student=student, directory=root / "export")


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return {name: export(name, tmp_path_factory.mktemp(name)) for name in CASES}


@pytest.fixture
def copied(exports: dict[str, Exported], tmp_path: Path, request: pytest.FixtureRequest) -> Exported:
    """An export that a test may change; its parameter names the case."""
    made = exports[request.param]
    directory = shutil.copytree(made.directory, tmp_path / "export")
    return Exported(student=made.student, directory=directory)
