"""llama.cpp computes the tiny GGUF files anew: its answers against our reader's and the recorded ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assets import Assets
from tests.gguf_cases import CASES, GOLDEN, TEXTS, TOKEN_CASES, TOKENS_FILE
from tests.gguf_reader import logits_of, relative_difference, tokens_of
from tests.oracles.asking import PYTHON, Question, ask, question

pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason=f"no llama-cpp-python: {PYTHON} (make oracles)")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Any]]]:
    """Every file, and llama.cpp's answer, by name."""
    scratch = tmp_path_factory.mktemp("llama-cpp")
    models = {name: case.model for name, case in CASES.items()} | TOKEN_CASES
    paths = {name: model.write(scratch / f"{name}.gguf") for name, model in models.items()}
    questions = [question(paths[name], case) for name, case in CASES.items()]
    questions += [Question(path=paths[name], texts=TEXTS) for name in TOKEN_CASES]
    _, found = ask(questions, scratch)
    return {name: (paths[name], answer) for name, answer in zip(models, found, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, answers: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    path, answer = answers[name]
    case = CASES[name]
    fresh = answer["logits"][case.positions]
    with np.load(GOLDEN / f"{name}.npz") as recorded:
        # Other processors add in another order.
        assert relative_difference(recorded["logits"], fresh) <= case.tolerance
    assert relative_difference(fresh, logits_of(path, case, tmp_path)) <= case.tolerance


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_tokens(name: str, answers: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    path, answer = answers[name]
    fresh = [answer[f"tokens_{number}"].tolist() for number in range(len(TEXTS))]
    assert fresh == json.loads(TOKENS_FILE.read_text())["files"][name]["tokens"]
    assert fresh == tokens_of(path, TEXTS, tmp_path)


def test_tokens_of_the_real_file(real_assets: Assets, tmp_path: Path) -> None:
    texts = [text.read_text(encoding="utf-8")[:20_000] for text in real_assets.texts.values()]
    _, [answer] = ask([Question(path=real_assets.gguf, texts=texts)], tmp_path)
    found = tokens_of(real_assets.gguf, texts, tmp_path)
    for number in range(len(texts)):
        assert answer[f"tokens_{number}"].tolist() == found[number]
