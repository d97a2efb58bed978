"""The real `tensorrt-edgellm` writes what was recorded, and that passes verification (`make edge-oracles`).

EDGE_LLM_PYTHON names the Python that has it; without one these tests are skipped by name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compressor.api import export
from compressor.core.console import Console
from compressor.recipe.recipe import EdgeLLM, Export
from exporters.checks.directory import Subject, check_directory
from exporters.checks.origins import Origin
from exporters.edge_llm.package import Converter, find_converter
from exporters.verification.logits import VerifyOptions
from tests.oracles.record_edge_llm import CASES, GOLDEN, config_of, make_case, structure

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("EDGE_LLM_PYTHON", str(ROOT / ".venv-edge" / "bin" / "python"))
FOUND = find_converter(PYTHON)

pytestmark = pytest.mark.skipif(not isinstance(FOUND, Converter), reason=f"no tensorrt-edgellm: {FOUND}")


@pytest.mark.parametrize("name", CASES)
def test_the_real_converter(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    student, out = make_case(case, tmp_path / "student"), tmp_path / "out"
    form = "tensorrt-edge-llm-fp8" if case.fp8 else "tensorrt-edge-llm"
    exporter_settings = Export(edge_llm=EdgeLLM(python=PYTHON))
    if case.fp8:
        from exporters.registry import exporter_of

        out.mkdir()
        options = VerifyOptions(console=Console(), export=exporter_settings)
        exporter_of(form).write(student, out, options)
        assert exporter_of(form).verify(out, student, options).checks["num_equal_fp8_weights"] == 14
    else:
        export(str(student), out, form, settings=exporter_settings)
        subject = Subject(directory=out, origin=Origin(path=student))
        assert check_directory(subject, VerifyOptions(console=Console())).status == "not executed"
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps({**structure(out / "llm"), "config": config_of(out / "llm")}))
    assert found == {part: golden[part] for part in found}
