"""The tokenizer inside a GGUF file, written as the files of a Hugging Face tokenizer.

Two kinds are read: byte pairs with a named pre-tokenizer (`tokenizer.ggml.model` gpt2), and SentencePiece
vocabularies with scores (llama), whose merges follow from the scores. Every other kind, and every field that
would change the tokens and is not known here, is refused: `--tokenizer DIR` gives the real tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.gguf.header import GgufHeader
from compressor.models.gguf.pretokenizers import PRE_TOKENIZERS
from compressor.models.tokenizer import read_backend
from compressor.models.tokenizer_files import PORTABLE_TOKENIZER_CLASS

_PREFIX = "tokenizer.ggml."
# How the file names the two kinds, after the models that had them first.
_BYTE_PAIRS, _SENTENCEPIECE = "gpt2", "llama"
_KNOWN = re.compile(
    r"model|pre|tokens|scores|token_type|token_type_count|merges|add_bos_token|add_eos_token"
    r"|add_space_prefix|[a-z_]+_token_id"
)
# Fields that converters write, and that change nothing where they say no.
_NEUTRAL_IF_FALSE = ("add_sep_token", "remove_extra_whitespaces")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_HINT = "add --tokenizer DIR, a directory with the model's own tokenizer.json"
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "eot": "eot", "eom": "eom"}
_SPACE = "\u2581"
# Tokens of spaces or lines take some hundred; every place of a token may be one where two others meet.
_MAX_TOKEN_LETTERS = 4096


def special_token_ids(header: GgufHeader) -> dict[str, int]:
    """The roles that the header gives to ids, with llama.cpp's defaults for a SentencePiece vocabulary.

    `eot` ends a turn and `eom` a message that awaits a tool's answer: both also end generation. An id beyond
    the vocabulary is a VerificationError.
    """
    is_sentencepiece = header.fields.get(f"{_PREFIX}model") == _SENTENCEPIECE
    ids = {"unk": 0, "bos": 1, "eos": 2} if is_sentencepiece else {}
    num_tokens = len(header.listed(f"{_PREFIX}tokens"))
    for theirs, ours in _ROLES.items():
        key = f"{_PREFIX}{theirs}_token_id"
        value = header.fields.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < num_tokens:
            raise VerificationError(
                "a special token of the GGUF file is not in its vocabulary",
                where=f"{header.path}: {key}",
                expected=f"below {num_tokens}",
                found=value,
            )
        ids[ours] = value
    return ids


def token_id_fields(ids: Mapping[str, int]) -> tuple[dict[str, object], dict[str, object]]:
    """The fields of `config.json`, and of `generation_config.json`: every token that ends an answer."""
    config: dict[str, object] = {
        f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids
    }
    ends = list(dict.fromkeys(ids[role] for role in ("eos", "eot", "eom") if role in ids))
    return config, {**config, "eos_token_id": ends} if len(ends) > 1 else config


def write_tokenizer(header: GgufHeader, directory: Path, *, max_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat templates of a GGUF file.

    A kind of tokenizer or a pre-tokenizer that is not known is unsupported, and a vocabulary that contradicts
    itself refused.
    """
    vocabulary = _Vocabulary(header)
    _write_json(directory / "tokenizer.json", vocabulary.document())
    config = {
        **{f"{role}_token": vocabulary.tokens[index] for role, index in vocabulary.named.items()},
        "tokenizer_class": PORTABLE_TOKENIZER_CLASS,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", config)
    for name, template in _chat_templates(header):
        file = directory / "chat_template.jinja"
        if name:
            file = directory / "additional_chat_templates" / f"{name}.jinja"
            file.parent.mkdir(exist_ok=True)
        file.write_text(template, encoding="utf-8")


def require_same_tokens(header: GgufHeader, directory: Path) -> None:
    """Refuse a tokenizer whose tokens have other ids than in the file, by which its embedding is ordered.

    Control and added tokens are left out: converters spell them in their own ways.
    """
    tokens = header.listed(f"{_PREFIX}tokens")
    types = header.listed(f"{_PREFIX}token_type") or [_NORMAL] * len(tokens)
    backend = read_backend(directory)
    for index, (token, kind) in enumerate(zip(tokens, types, strict=False)):
        found = backend.id_to_token(index)
        if kind == _NORMAL and token not in (found, f"[PAD{index}]"):
            raise VerificationError(
                "this is not the tokenizer that the GGUF file was made with",
                where=f"--tokenizer, id {index}",
                expected=repr(token),
                found="no such id" if found is None else repr(found),
                hint="give the directory of the model that the file was converted from",
            )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _chat_templates(header: GgufHeader) -> Iterator[tuple[str, str]]:
    """The default template under "", and the named ones."""
    key = "tokenizer.chat_template"
    for name, value in header.fields.items():
        if not isinstance(value, str):
            continue
        if name == key:
            yield "", value
        elif name.startswith(f"{key}."):
            variant = name.removeprefix(f"{key}.")
            if not re.fullmatch(r"[\w-]{1,64}", variant):
                raise VerificationError(
                    "a chat template has a name that cannot be a file name",
                    where=str(header.path),
                    found=name,
                )
            yield variant, value


class _Vocabulary:
    """The tokens of a header, and the `tokenizer.json` that they make."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._where = str(header.path)
        self._refuse_unknown_fields()
        self.kind = header.field(f"{_PREFIX}model")
        self.tokens: list[str] = self._list("tokens", str)
        if (longest := max(map(len, self.tokens), default=0)) > _MAX_TOKEN_LETTERS:
            raise self._refuse("a token is far longer than any word", f"{longest:,} letters")
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self._ids) < len(self.tokens):
            raise self._refuse("a token stands twice in the vocabulary", self._repeated())
        types = self._list("token_type", int) if f"{_PREFIX}token_type" in header.fields else []
        self._types = types or [_NORMAL] * len(self.tokens)
        if len(self._types) != len(self.tokens):
            raise self._refuse("the list of token types has another length than the tokens", len(self._types))
        self._special = special_token_ids(header)
        self.named = {
            role: self._special[role] for role in ("bos", "eos", "unk", "pad") if role in self._special
        }

    def document(self) -> dict[str, object]:
        """The content of `tokenizer.json`."""
        builders = {_BYTE_PAIRS: self._byte_pairs, _SENTENCEPIECE: self._sentencepiece}
        build = builders.get(str(self.kind))
        if build is None:
            raise UnsupportedError(
                "this kind of tokenizer is not read from GGUF files",
                where=f"{self._where}: {_PREFIX}model",
                expected=" or ".join(builders),
                found=self.kind,
                hint=_HINT,
            )
        plain = {"version": "1.0", "truncation": None, "padding": None}
        return {**plain, "added_tokens": self._added_tokens(), **build()}

    def _byte_pairs(self) -> dict[str, object]:
        name = self._header.fields.get(f"{_PREFIX}pre")
        pre = PRE_TOKENIZERS.get(str(name or ""))
        if pre is None:
            raise UnsupportedError(
                "the GGUF file does not name its pre-tokenizer"
                if name is None
                else f"the pre-tokenizer {name!r} is not known",
                where=f"{self._where}: {_PREFIX}pre",
                expected=", ".join(PRE_TOKENIZERS),
                found=name,
                hint=_HINT,
            )
        splits = [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
            for split in pre.splits
        ]
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        return {
            "normalizer": {"type": "NFC"} if pre.composes else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
            "post_processor": self._template(adds_bos=pre.adds_bos),
            "decoder": {**byte_level, "use_regex": True},
            "model": self._model(
                merges=[_pair(merge) for merge in self._list("merges", str)], ignore_merges=pre.ignore_merges
            ),
        }

    def _sentencepiece(self) -> dict[str, object]:
        prefixes = self._header.fields.get(f"{_PREFIX}add_space_prefix", True)
        replace_space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefixes else []
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixes else []
        decoders = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *strip,
        ]
        unknown = self._special.get("unk")
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace_space]},
            "pre_tokenizer": None,
            "post_processor": self._template(adds_bos=True),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": self._model(
                merges=self._merges_of_scores(),
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            ),
        }

    def _model(self, *, merges: list[tuple[str, str]], **fields: object) -> dict[str, object]:
        """Byte pairs; placeholders that only fill the embedding's rows are left out."""
        vocab = {
            token: index
            for index, token in enumerate(self.tokens)
            if self._types[index] != _UNUSED or token != f"[PAD{index}]" or index in self._special.values()
        }
        absent = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
        off = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
        plain = {"type": "BPE", **dict.fromkeys(absent), **off}
        return {**plain, **fields, "vocab": vocab, "merges": merges}

    def _merges_of_scores(self) -> list[tuple[str, str]]:
        """Every pair of tokens that makes a token, the best score first.

        Tokens that are made and have one score are refused: the leftmost pair is merged first then, which no
        list of merges says.
        """
        scores = self._list("scores", float)
        if len(scores) != len(self.tokens):
            raise self._refuse("the list of scores has another length than the tokens", len(scores))
        found = [
            (-scores[index], len(token[:cut]), (token[:cut], token[cut:]))
            for index, token in enumerate(self.tokens)
            for cut in range(1, len(token))
            if token[:cut] in self._ids and token[cut:] in self._ids
        ]
        made = {"".join(pair) for _, _, pair in found}
        of_made = [
            score
            for token, kind, score in zip(self.tokens, self._types, scores, strict=True)
            if kind == _NORMAL and token in made
        ]
        if len(set(of_made)) < len(of_made):
            ties = len(of_made) - len(set(of_made))
            raise self._refuse("tokens share a score, so their merges have no order", f"{ties} shared scores")
        return [pair for _, _, pair in sorted(found, key=lambda entry: entry[:2])]

    def _added_tokens(self) -> list[dict[str, object]]:
        """Tokens found whole in a text: control tokens, the unknown one, those with a role, a user's own."""
        special = set(self._special.values())
        off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [
            {"id": index, "content": token, **off, "special": kind != _USER_DEFINED or index in special}
            for index, (token, kind) in enumerate(zip(self.tokens, self._types, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) or index in special
        ]

    def _template(self, *, adds_bos: bool) -> dict[str, object] | None:
        """The post-processor that puts start and end tokens around a text, where the file wants it."""
        wanted = {
            "bos": self._header.fields.get(f"{_PREFIX}add_bos_token", adds_bos),
            "eos": self._header.fields.get(f"{_PREFIX}add_eos_token", False),
        }
        texts: dict[str, str] = {}
        for role in (role for role in wanted if wanted[role]):
            if role not in self._special:
                raise self._refuse("a text shall begin or end with a token that the file does not name", role)
            texts[role] = self.tokens[self._special[role]]
        if not texts:
            return None

        def sequence(name: str, type_id: int) -> list[dict[str, object]]:
            def special(role: str) -> list[dict[str, object]]:
                return [{"SpecialToken": {"id": texts[role], "type_id": type_id}}] if role in texts else []

            return [*special("bos"), {"Sequence": {"id": name, "type_id": type_id}}, *special("eos")]

        return {
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": [*sequence("A", 0), *sequence("B", 1)],
            "special_tokens": {
                text: {"id": text, "ids": [self._ids[text]], "tokens": [text]} for text in texts.values()
            },
        }

    def _list(self, key: str, kind: type) -> list[Any]:
        values = self._header.field(f"{_PREFIX}{key}")
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise self._refuse(f"{_PREFIX}{key} is not a list of {kind.__name__}", type(values).__name__)
        return values

    def _repeated(self) -> str:
        seen: set[str] = set()
        return next(token for token in self.tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]

    def _refuse_unknown_fields(self) -> None:
        for name, value in self._header.fields.items():
            key = name.removeprefix(_PREFIX)
            neutral = key in _NEUTRAL_IF_FALSE and value is False
            if key != name and not neutral and not _KNOWN.fullmatch(key):
                raise UnsupportedError(
                    "a field of the GGUF file's tokenizer is not understood",
                    where=f"{self._where}: {name}",
                    hint=_HINT,
                )

    def _refuse(self, what: str, found: object) -> VerificationError:
        return VerificationError(what, where=self._where, found=found, hint=_HINT)


def _pair(merge: str) -> tuple[str, str]:
    """The two halves of a merge; the first may begin with a space."""
    first, _, second = merge[1:].partition(" ")
    return merge[:1] + first, second
