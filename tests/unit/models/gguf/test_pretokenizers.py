"""How named pre-tokenizers split a text, against llama.cpp's expressions as its source spells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Sequence, Split

from compressor.core.errors import UnsupportedError
from compressor.models.gguf.header import read_header
from compressor.models.gguf.pretokenizers import PRE_TOKENIZERS
from compressor.models.gguf.tokenizer import write_tokenizer
from tests.gguf_cases import TEXTS, TOKENS_FILE
from tests.gguf_files import TinyGguf
from tests.gguf_reader import tokens_of

CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
LLAMA3 = (
    rf"{CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
SEED_CODER = (
    rf"{CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Name -> the expressions that llama.cpp applies one after the other.
LLAMA_CPP = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), (LLAMA3,)),
    "smaug-bpe": (LLAMA3,),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (QWEN2,)),
    **dict.fromkeys(("gpt-2", "phi-2", "mellum", "a.x-4.0", "trillion"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "minerva-7b"), (r"\p{N}", GPT2)),
    "seed-coder": (SEED_CODER,),
}
# Of names that llama.cpp treats alike, the one whose tokens it was asked for.
ALIKE = {
    **dict.fromkeys(("llama3", "llama-v3", "pixtral", "midm-2.0"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), "qwen2"),
    **dict.fromkeys(("mellum", "a.x-4.0", "trillion"), "gpt-2"),
    "minerva-7b": "smollm",
}
MORE_TEXTS = ("x ==\n\n y;\r\n(a)!\n", "'LL it's 12345 \u0661\u0662\u0663\u0664 \u2167a  \n\n b \t\n")


def splitter(expressions: tuple[str, ...]) -> Sequence:
    return Sequence([Split(Regex(expression), "isolated") for expression in expressions])


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_a_text_is_split_as_llama_cpp_splits_it(name: str) -> None:
    expected, found = splitter(LLAMA_CPP[name]), splitter(PRE_TOKENIZERS[name].splits)
    for text in (*TEXTS, *MORE_TEXTS):
        assert found.pre_tokenize_str(text) == expected.pre_tokenize_str(text)


@pytest.mark.parametrize("name", ALIKE)
def test_tokens_are_those_of_the_name_that_llama_cpp_treats_alike(name: str, tmp_path: Path) -> None:
    recorded = json.loads(TOKENS_FILE.read_text())["files"][f"pre-{ALIKE[name]}"]["tokens"]
    path = TinyGguf(pre=name, num_layers=1).write(tmp_path / "model.gguf")
    assert tokens_of(path, TEXTS, tmp_path) == recorded


def test_line_ends_part_from_marks_in_seed_coder_alone() -> None:
    """The texts tell its expression from Qwen2's."""
    text = MORE_TEXTS[0]
    pieces = [piece for piece, _ in splitter(PRE_TOKENIZERS["seed-coder"].splits).pre_tokenize_str(text)]
    assert pieces == ["x", " ==", "\n\n", " y", ";", "\r\n", "(a", ")!", "\n"]
    assert pieces != [piece for piece, _ in splitter((QWEN2,)).pre_tokenize_str(text)]


def test_r1_distilled_from_qwen_puts_its_start_token_where_the_file_says(tmp_path: Path) -> None:
    for adds in (True, False):
        fields = {"ggml.add_bos_token": adds}
        path = TinyGguf(architecture="qwen2", pre="deepseek-r1-qwen", tokenizer_fields=fields)
        (tmp_path / str(adds)).mkdir()
        header = read_header(path.write(tmp_path / f"{adds}.gguf"))
        write_tokenizer(header, tmp_path / str(adds), max_length=64)
        ids = Tokenizer.from_file(str(tmp_path / str(adds) / "tokenizer.json")).encode("a").ids
        assert (ids[0] == header.field("tokenizer.ggml.bos_token_id")) is adds


@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-v3", "llama4", "qwen35", "viking", "chatglm-bpe"])
def test_a_name_that_is_not_known_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    path = TinyGguf(pre=name, num_layers=1).write(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match="--tokenizer DIR") as caught:
        write_tokenizer(read_header(path), tmp_path, max_length=64)
    assert caught.value.found == name
