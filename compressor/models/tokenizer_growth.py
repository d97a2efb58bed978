"""How much longer the rules of a `tokenizer.json` can make a text, before any text is given to them.

Rules follow one another: thirty that write a letter twice make a billion of one, and no library minds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError

# Real tokenizers stay below 10: a space becomes a mark, one is put in front, a byte becomes a letter.
MAX_GROWTH = 256.0
# What is done to a text, and what to its tokens.
_WAYS = (("normalizer", "pre_tokenizer"), ("decoder",))
# Rules that write more than they read, by a fixed factor: of one byte a letter of two, a mark in front.
_FACTORS = {"ByteLevel": 2.0, "Metaspace": 2.0}


def require_bounded_growth(document: Mapping[str, Any], where: Path) -> None:
    """Refuse a tokenizer of which a part can make a text more than 256 times as long.

    Raises:
        VerificationError: naming the part.
    """
    for way in _WAYS:
        growth = 1.0
        for part, rule in ((name, rule) for name in way for rule in _rules(document.get(name))):
            growth *= _growth(rule)
            if growth > MAX_GROWTH:
                raise VerificationError(
                    "the tokenizer's rules can make a text far longer than it is",
                    where=f"{where}: {part}",
                    expected=f"at most {MAX_GROWTH:.0f} times as long",
                    found="more",
                    hint="use the tokenizer.json that the model was published with",
                )


def _rules(root: Any) -> Iterator[Mapping[str, Any]]:
    """Every rule of a part, however deep in sequences."""
    below = [root]
    while below:
        node = below.pop()
        if isinstance(node, dict):
            yield node
            below += node.values()
        elif isinstance(node, list):
            below += node


def _growth(rule: Mapping[str, Any]) -> float:
    """Letters written for one that is read, at most."""
    kind, content = rule.get("type"), rule.get("content")
    if kind == "Replace" and isinstance(content, str):
        pattern = rule.get("pattern")
        replaced = pattern.get("String") if isinstance(pattern, dict) else None
        # An expression may match nothing, in front of every letter.
        return max(1.0, len(content) / len(replaced)) if replaced else 1.0 + len(content)
    if kind == "Prepend" and isinstance(prepended := rule.get("prepend"), str):
        return 1.0 + len(prepended)
    return _FACTORS.get(str(kind), 1.0)
