"""How `tokenizer.ggml.pre` splits a text into words before byte pairs are merged.

llama.cpp names pre-tokenizers and holds their expressions (src/llama-vocab.cpp). Where it adapts one to a
regular expression library that lacks what the original needs, the original stands here, as published in
the model's `tokenizer.json`. Names of families that this project does not read are left out: an unknown
name is refused, because a wrong split silently gives other tokens. So is `deepseek-llm`, whose
letters llama.cpp lists in composed form: some of its ranges are not those of the published file any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_ANY_CASE = f"(?i:{_CONTRACTIONS})"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_BEFORE_WORD = r"[^\r\n\p{L}\p{N}]?"


def _words_and_digits(digits: str) -> str:
    """The expression of Llama 3 and Qwen2, which differ in how many digits stay together."""
    marks = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    return rf"{_ANY_CASE}|{_BEFORE_WORD}\p{{L}}+|{digits}|{marks}|{_LINES_AND_SPACES}"


def _cased_words(digits: str, suffix: str) -> str:
    """The expression of Tekken and GPT-4o: a word begins anew where its case rises."""
    words = rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+{suffix}|{_BEFORE_WORD}{_UPPER}+{_LOWER}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACES}"


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One way of splitting.

    Attributes:
        splits: Expressions applied one after the other; what matches and what lies between stay apart.
        ignore_merges: Whether a word that is a token stays whole, whatever the merges would make of it.
        composes: Whether the text is brought into Unicode's composed form (NFC) first.
        adds_bos: Whether the start token is put first where the file does not say.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    composes: bool = False
    adds_bos: bool = False


_LLAMA3 = PreTokenizer(splits=(_words_and_digits(r"\p{N}{1,3}"),), ignore_merges=True, adds_bos=True)
_SINGLE_DIGITS = PreTokenizer(splits=(r"\p{N}", _GPT2))
_PLAIN = PreTokenizer(splits=(_GPT2,))
_QWEN2 = PreTokenizer(splits=(_words_and_digits(r"\p{N}"),), composes=True)
# As Qwen2's, but that line ends stay apart from the marks before them.
_SEED_CODER = rf"{_ANY_CASE}|{_BEFORE_WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES_AND_SPACES}"

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "a.x-4.0": _PLAIN,
    "default": PreTokenizer(splits=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "deepseek-coder": PreTokenizer(
        splits=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")
    ),
    # Qwen2's vocabulary and expression with DeepSeek's control tokens.
    "deepseek-r1-qwen": _QWEN2,
    "falcon3": _LLAMA3,
    "gpt-2": _PLAIN,
    "gpt-4o": PreTokenizer(splits=(_cased_words(r"\p{N}{1,3}", f"{_ANY_CASE}?"),)),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "megrez": replace(_QWEN2, composes=False),
    "mellum": _PLAIN,
    "midm-2.0": _LLAMA3,
    "minerva-7b": _SINGLE_DIGITS,
    "phi-2": _PLAIN,
    "pixtral": _LLAMA3,
    "qwen2": _QWEN2,
    "refact": _SINGLE_DIGITS,
    "seed-coder": PreTokenizer(splits=(_SEED_CODER,)),
    "smaug-bpe": replace(_LLAMA3, ignore_merges=False, adds_bos=False),
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "tekken": PreTokenizer(splits=(_cased_words(r"\p{N}", ""),), ignore_merges=True, adds_bos=True),
    "trillion": _PLAIN,
}
