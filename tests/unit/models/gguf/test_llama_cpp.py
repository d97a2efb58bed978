"""Our reading of GGUF files against llama.cpp's recorded logits and token ids (tests/golden/gguf)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compressor.models.gguf.convert import convert_gguf
from compressor.runs.artifact import sha256_of_file
from tests.gguf_cases import CASES, GOLDEN, TEXTS, TOKEN_CASES, TOKENS_FILE
from tests.gguf_reader import logits_of, plain_logits, relative_difference, tokens_of

SCALED = [name for name, case in CASES.items() if case.model.rope]
# What a model without its rope scaling differs by: nearly everything.
WRONG = 0.3


@pytest.mark.parametrize("name", CASES)
def test_logits_are_llama_cpps(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.model.write(tmp_path / f"{name}.gguf")
    with np.load(GOLDEN / f"{name}.npz") as recorded:
        assert sha256_of_file(path) == str(recorded["sha256"]), "the file is not the one that was recorded"
        assert relative_difference(recorded["logits"], logits_of(path, case, tmp_path)) <= case.tolerance


@pytest.mark.parametrize("name", SCALED)
def test_a_forgotten_rope_scaling_would_show(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    directory = convert_gguf(case.model.write(tmp_path / f"{name}.gguf"), tmp_path, "float32")
    config = json.loads((directory / "config.json").read_text())
    plain = {"rope_theta": config["rope_theta"], "rope_type": "default"}
    (directory / "config.json").write_text(
        json.dumps({**config, "rope_scaling": None, "rope_parameters": plain})
    )
    with np.load(GOLDEN / f"{name}.npz") as recorded:
        assert relative_difference(recorded["logits"], plain_logits(directory, case)) > WRONG


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_tokens_are_llama_cpps(name: str, tmp_path: Path) -> None:
    recorded = json.loads(TOKENS_FILE.read_text())["files"][name]
    path = TOKEN_CASES[name].write(tmp_path / f"{name}.gguf")
    assert sha256_of_file(path) == recorded["sha256"], "the file is not the one that was recorded"
    assert tokens_of(path, TEXTS, tmp_path) == recorded["tokens"]


def test_the_ways_of_splitting_differ_on_the_texts() -> None:
    """The texts tell every expression from every other one."""
    recorded = json.loads(TOKENS_FILE.read_text())["files"]
    same = [{"gpt-2", "phi-2"}, {"smollm", "starcoder", "refact"}, {"falcon3", "llama-bpe"}]
    seen: dict[str, str] = {}
    for name, answer in recorded.items():
        if name.startswith("pre-"):
            other = seen.setdefault(json.dumps(answer["tokens"]), name)
            pair = {other.removeprefix("pre-"), name.removeprefix("pre-")}
            assert len(pair) == 1 or any(pair <= group for group in same), pair
