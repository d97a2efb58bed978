"""Our reading of a GGUF file, evaluated by libraries that know nothing of it: transformers and tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from compressor.models.gguf.convert import convert_gguf
from compressor.models.gguf.header import read_header
from compressor.models.gguf.tokenizer import write_tokenizer
from tests.gguf_cases import LogitCase

Array = np.ndarray[Any, Any]


def logits_of(path: Path, case: LogitCase, scratch: Path) -> Array:
    """The conversion in plain transformers, float32: `[num_positions, vocab_size]`."""
    return plain_logits(convert_gguf(path, scratch, "float32"), case)


def plain_logits(directory: Path, case: LogitCase) -> Array:
    """The same of a directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        logits = model(torch.tensor([case.token_ids]), use_cache=False).logits
    return np.asarray(logits[0, case.positions].numpy())


def tokens_of(path: Path, texts: Sequence[str], scratch: Path) -> list[list[int]]:
    """The ids that the written `tokenizer.json` gives, start and end tokens included."""
    directory = scratch / "tokenizer"
    directory.mkdir()
    write_tokenizer(read_header(path), directory, max_length=4096)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in texts]


def relative_difference(expected: Array, found: Array) -> float:
    """Largest difference over largest logit."""
    return float(np.abs(expected - found).max() / np.abs(expected).max())
