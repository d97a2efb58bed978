"""The tokenizer check of every export: its ids are those of the student's `tokenizer.json`, loaded by anyone.

Two readers are asked: the file itself through the `tokenizers` library, and plain `AutoTokenizer`, which
follows the class that the export's config names. ONNX Runtime GenAI reads the file itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE
from compressor.models.tokenizer import (
    TOKENIZER_FILE,
    TOKENIZER_TEXTS,
    added_text,
    first_difference,
    has_tokenizer,
    load_tokenizer,
    read_backend,
)
from exporters.verification.prompts import TEXTS

_HINT = (
    "transformers reads it by a class's own rules, as 5 does with every qwen2 model's; "
    "tokenizer.json itself is right, and PreTrainedTokenizerFast reads it"
)
_ROLES = ("bos", "eos", "pad", "unk")


def check_tokenizer(out_dir: Path, student: Path, *, trust_remote_code: bool) -> str:
    """Refuse an export whose tokenizer gives other ids, roles or chat templates than the student's."""
    if not has_tokenizer(student):
        return "none"
    original = load_tokenizer(student, trust_remote_code=trust_remote_code)
    expected = original.backend_tokenizer
    if (student / TOKENIZER_FILE).is_file():
        expected = read_backend(student)
    if not (out_dir / TOKENIZER_FILE).is_file():
        raise VerificationError("the export has no tokenizer", where=str(out_dir), expected=TOKENIZER_FILE)
    texts = (*TEXTS, *TOKENIZER_TEXTS, added_text(expected))
    loaded = [load_tokenizer(out_dir)]
    _require_equal(expected, read_backend(out_dir), texts, reader=TOKENIZER_FILE)
    if (out_dir / CONFIG_FILE).is_file():
        loaded.append(_as_anyone_loads(out_dir))
        _require_equal(expected, loaded[-1], texts, reader="AutoTokenizer", hint=_HINT)
    for tokenizer in loaded:
        _require_same_settings(original, tokenizer, out_dir)
    return "equal on every fixed text, and to what tokenizer.json computes"


def _as_anyone_loads(out_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(out_dir, local_files_only=True)


def _require_equal(
    expected: Any, found: Any, texts: tuple[str, ...], *, reader: str, hint: str | None = None
) -> None:
    text = first_difference(expected, found, texts)
    if text is not None:
        raise VerificationError(
            "the exported tokenizer encodes a text differently",
            where=f"read by {reader}",
            found=f"{text!r:.80}",
            hint=hint,
        )


def _require_same_settings(original: Any, exported: Any, out_dir: Path) -> None:
    """Compare the tokens with a role, and every chat template."""
    for role in _ROLES:
        token_id = f"{role}_token_id"
        # A role that no token has is given one by transformers alone; no text makes it.
        if getattr(original, token_id) not in (None, getattr(exported, token_id)):
            raise VerificationError(
                f"the exported tokenizer has another {role} token",
                where=str(out_dir),
                expected=getattr(original, token_id),
                found=getattr(exported, token_id),
            )
    if original.chat_template != exported.chat_template:
        raise VerificationError("the exported tokenizer has another chat template", where=str(out_dir))
