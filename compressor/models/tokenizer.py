"""The tokenizer beside a checkpoint: loading it, and carrying its files along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compressor.errors import UsageError, VerificationError


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer beside a checkpoint.

    Raises:
        UsageError: when there is none.
        VerificationError: when its files cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UsageError("the checkpoint has no tokenizer", where=str(directory), expected="tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
        raise VerificationError(
            "the tokenizer cannot be loaded", where=str(directory), found=f"{type(error).__name__}: {error}"
        ) from error


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the files beside the weights: tokenizer, chat template, generation settings."""
    patterns = (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "*.jinja",
        "vocab.*",
        "merges.txt",
        "generation_config.json",
    )
    for pattern in patterns:
        for file in source.glob(pattern):
            shutil.copyfile(file, destination / file.name)
