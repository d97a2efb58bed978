"""Every rope form, rewritten, computes what plain transformers computes from the original directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressor.models.portable import make_portable
from tests.rope_forms import (
    LARGEST_DIFFERENCE,
    ROPE_CASES,
    RopeForm,
    case_name,
    largest_difference,
    make_rope_model,
    plain_logits,
)


@pytest.mark.parametrize(("family", "form"), ROPE_CASES, ids=case_name)
def test_a_rewritten_config_computes_the_same(family: str, form: RopeForm, tmp_path: Path) -> None:
    made = make_rope_model(tmp_path / "source", family, form)
    again = Path(shutil.copytree(made.directory, tmp_path / "again"))

    make_portable(again)
    once = (again / "config.json").read_bytes()
    make_portable(again)

    assert (again / "config.json").read_bytes() == once
    assert largest_difference(plain_logits(again, made.token_ids), made.logits) <= LARGEST_DIFFERENCE
