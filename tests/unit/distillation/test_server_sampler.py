"""Sampling through a server, on a stand-in: requests, texts, counts, seeds and failures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.cli.main import invoke
from compressor.core.errors import CompressExportError, DependencyError, ResourceError, VerificationError
from compressor.data.packing import read_windows
from compressor.distillation.generate_stage import GENERATE, TEXT_FILE
from compressor.distillation.server_sampler import SAMPLES_IN_FLIGHT
from compressor.models.tokenizer import load_tokenizer
from compressor.planning.runtime_choice import choose_runtime, with_runtime
from compressor.recipe.recipe import Generate, load_recipe
from compressor.runs.stage import StageOutcome, execute
from tests.unit.distillation import stand_in_server
from tests.unit.distillation.test_stage import as_source, make_context

CONFIG = {"tokens": 300, "max_new_tokens": 6, "temperature": 0.7, "top_p": 0.9}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "tools"


def sample(checkpoint: Path, out_dir: Path, **changed: Any) -> StageOutcome:
    config = Generate(**{**CONFIG, **changed})
    return execute(GENERATE, config, as_source(checkpoint), out_dir, make_context(None))


def expected_seed(index: int) -> int:
    """The first 31 bits that NumPy makes of the run's seed, 0, and the sample's number."""
    return int(np.random.SeedSequence([0, index]).generate_state(1)[0]) % (1 << 31)


@pytest.mark.parametrize(("name", "program"), [("vllm", "vllm"), ("tensorrt-llm", "trtllm-serve")])
def test_auto_samples_through_a_server_that_is_installed(
    tools: Path, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, name: str, program: str
) -> None:
    calls = stand_in_server.install(tools, program)
    outcome = sample(tiny_checkpoint, tmp_path / "out", prompts=str(tiny_text), prompt_tokens=4)
    details = outcome.artifact.details
    lines = [json.loads(line)["text"] for line in (tmp_path / "out" / TEXT_FILE).read_text().splitlines()]
    assert (details["sampler"], details["seed"]) == (name, 0)
    assert outcome.artifact.inputs["config"]["sampler"] == name
    tokenizer = load_tokenizer(tiny_checkpoint)
    windows = read_windows(str(tiny_text), "train", tokenizer, size=50, seq_len=4)
    written = num_tokens = num_ended = 0
    for index in range(SAMPLES_IN_FLIGHT):
        seed = expected_seed(index)
        count = 2 if seed % 3 == 0 else 6
        if num_tokens < 300:
            prompt = tokenizer.decode(windows[index % len(windows)])
            assert lines[index] == prompt + f" <{seed}>" * count
            num_tokens, num_ended, written = num_tokens + count, num_ended + (count == 2), written + 1
    assert (details["samples"], details["tokens"]) == (written, num_tokens) == (len(lines), num_tokens)
    assert details["ended_by_the_model"] == num_ended
    asked = [json.loads(line) for line in calls.read_text().splitlines()]
    [words, first] = asked[0]
    assert words[words.index("serve") + 1 if program == "vllm" else 0] == str(tiny_checkpoint)
    assert first["prompt"][0] == tokenizer.bos_token_id
    assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.7, 0.9, 6)
    assert tokenizer.eos_token_id in first["stop_token_ids"]
    assert sample(tiny_checkpoint, tmp_path / "out", prompts=str(tiny_text), prompt_tokens=4).skipped


@pytest.mark.parametrize(
    ("behaviour", "error", "sentence"),
    [
        ("out of memory", ResourceError, "vllm ran out of memory"),
        ("answers less", VerificationError, "fewer tokens than it was asked for"),
        ("refuses", VerificationError, "HTTP status 404"),
    ],
)
def test_a_server_that_goes_wrong_is_no_text(
    tools: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    behaviour: str,
    error: type[CompressExportError],
    sentence: str,
) -> None:
    stand_in_server.install(tools, "vllm", behaviour=behaviour)
    with pytest.raises(error, match=sentence):
        sample(tiny_checkpoint, tmp_path / "out")


def test_what_is_sampled_here_is_recorded_as_before(
    tools: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    outcome = sample(tiny_checkpoint, tmp_path / "out", tokens=20)
    assert outcome.artifact.details["sampler"] == "transformers"
    assert "sampler" not in outcome.artifact.inputs["config"]
    stand_in_server.install(tools, "vllm")
    assert sample(tiny_checkpoint, tmp_path / "out", tokens=20, sampler="transformers").skipped


def test_a_run_says_in_its_recipe_what_samples(tools: Path) -> None:
    stand_in_server.install(tools, "vllm")
    recipe = load_recipe(None, {"model": "m", "bench.runtime": "none", "distill.generate.tokens": 10})
    assert with_runtime(recipe, choose_runtime(recipe)).distill.generate.sampler == "vllm"


def test_a_named_server_that_is_missing_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(tiny_checkpoint), "--tokens", "9", "--sampler", "tensorrt-llm"]
    assert invoke([*words, "-o", str(tmp_path / "out")]) == DependencyError.exit_code
    assert "trtllm-serve is not on PATH" in capsys.readouterr().err
