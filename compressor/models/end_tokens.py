"""Tokens that end what a model generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import CONFIG_FILE
from compressor.models.tokenizer_files import GENERATION_CONFIG_FILE


def own_end_tokens(checkpoint: Path) -> object:
    """What a checkpoint says that generation ends with, in its generation settings or else its config."""
    for name in (GENERATION_CONFIG_FILE, CONFIG_FILE):
        file = checkpoint / name
        found = read_json_mapping(file, what=name).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return found
    return None


def end_tokens(own: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a sample: the checkpoint's own and the tokenizer's."""
    own = own if isinstance(own, list) else [own]
    return tuple(sorted({int(token) for token in (*own, tokenizer.eos_token_id) if token is not None}))
