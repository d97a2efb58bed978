"""Configs and tokenizers that transformers 4.57 and 5 read alike.

transformers 5 writes only `rope_parameters` and `dtype`, and its own tokenizer class name. Read by
4.57 (the TensorRT-LLM 1.2 container, vLLM) such a config silently means rope base 10000 without
scaling, and the tokenizer does not load. So the older keys are written beside the new ones.

What names code of the model's own (`auto_map`) is not written: the rules of this project are those of the
family's class, which every runtime has, and with `trust_remote_code` transformers would ask for the code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.models.checkpoint import CONFIG_FILE, read_config
from compressor.models.config.rope import has_rope, rope_fields
from compressor.models.tokenizer_files import make_tokenizer_portable

# A path of the machine that wrote the file, and code that does not travel.
_STAYING = ("_model_name_or_path", "auto_map")


def portable_config(config: Mapping[str, object]) -> dict[str, Any]:
    """A copy of a config with the keys of both generations.

    The rope's are filled from whichever is there, class defaults included, and `torch_dtype` with `dtype`.
    Other absent fields stay absent, because both generations' classes have the same default for them.

    Raises:
        UnsupportedError: when the rope cannot be said to both generations.
    """
    both = {key: value for key, value in config.items() if key not in _STAYING}
    if has_rope(both):
        both |= rope_fields(both)
    if dtype := both.get("dtype") or both.get("torch_dtype"):
        both["dtype"] = both["torch_dtype"] = dtype
    return both


def make_portable(directory: Path) -> None:
    """Rewrite a checkpoint's config and tokenizer config in place for both generations."""
    write_config(directory, read_config(directory))
    make_tokenizer_portable(directory)


def write_config(directory: Path, config: Mapping[str, object]) -> None:
    """Write `config.json`, portable."""
    text = json.dumps(portable_config(config), indent=2, sort_keys=True) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
