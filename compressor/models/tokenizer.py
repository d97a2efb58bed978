"""The tokenizer beside a checkpoint: what its `tokenizer.json` computes, whatever class a config names.

transformers 5 builds a tokenizer again from the class that `tokenizer_config.json` names, and a byte-level
`tokenizer.json` called LlamaTokenizerFast loses every space that way. Here the file itself is the backend,
and the configs only say which tokens have a role, and how conversations are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.core.errors import (
    CompressExportError,
    DependencyError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from compressor.core.json_files import read_json_mapping
from compressor.models.tokenizer_growth import require_bounded_growth

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE, _ADDED_FILE = "tokenizer_config.json", "added_tokens.json"
# Without a tokenizer.json these are converted by transformers; each group is a whole vocabulary.
_OLDER_FILES = (("tokenizer.model",), ("vocab.json", "merges.txt"))
_MODEL_BYTES = 1 << 28
_NUM_NAMED = 5

# What tokenizers disagree about: runs of spaces and newlines, digits, code, scripts, emoji, combined marks.
TOKENIZER_TEXTS = (
    "In 2024, don't stop: it's 3.14159 or 1234567890, isn't it?  WE'LL see.",
    "def f(x):\n    if x > 10:\n\t\treturn x**2  # squared\n\n\n    return {'a': [1, 22, 333]}\r\n",
    "    four   spaces,  two\n \n  \n\ttabs\t\tend   ",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u6771\u4eac\u306b24\u5e74\u3001\uc548\ub155\ud558\uc138\uc694",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 d\u00e9j\u00e0 \u00dcber",
    "stra\u00dfe \u00bd \u2160 \u2026 \u201cquoted\u201d",
    'HTTPServer2Go camelCase snake_case http://a.b/c?d=e&f=%20 <tag attr="1"/> \\n $x^2$ ~~ ==> !!',
)


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer beside a checkpoint: a UsageError where there is none.

    Files that cannot be read, or contradict each other, are a VerificationError.
    """
    if not has_tokenizer(directory):
        raise UsageError(
            "the checkpoint has no tokenizer",
            where=str(directory),
            hint=f"put the model's {TOKENIZER_FILE} beside the weights",
        )
    if not (directory / TOKENIZER_FILE).exists():
        return _converted(directory, trust_remote_code=trust_remote_code)
    from transformers import PreTrainedTokenizerFast

    backend = read_backend(directory)
    with _readable(directory):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        # What transformers adds to a file by its configs is not what the file computes.
        tokenizer._tokenizer = backend  # noqa: SLF001 - no public name sets the backend
        _require_roles(tokenizer, backend, directory)
        for text in (*TOKENIZER_TEXTS, added_text(backend)):
            if tokenizer(text).input_ids != backend.encode(text).ids:
                raise VerificationError(
                    f"transformers does not compute what {TOKENIZER_FILE} says",
                    where=str(directory),
                    found=repr(text),
                )
    return tokenizer


def require_convertible(directory: Path, vocab_size: int, *, trust_remote_code: bool = False) -> None:
    """Refuse older tokenizer files that cannot be made a `tokenizer.json`, which every stage copies.

    Raises:
        UnsupportedError: for a tokenizer that is code.
        DependencyError: when the library that reads the files is missing.
        VerificationError: for files that cannot be read, that lose characters, or with ids beyond the rows
            of the embedding.
    """
    if has_tokenizer(directory) and not (directory / TOKENIZER_FILE).exists():
        tokenizer = _converted(directory, trust_remote_code=trust_remote_code)
        _require_below(tokenizer.get_vocab(), vocab_size, directory)


def has_tokenizer(directory: Path) -> bool:
    """Whether files of a tokenizer lie in a directory."""
    groups = ((TOKENIZER_FILE,), *_OLDER_FILES)
    return any(all((directory / name).exists() for name in group) for group in groups)


def read_backend(directory: Path) -> Any:
    """The `tokenizers.Tokenizer` of a directory's `tokenizer.json`, without truncation and padding."""
    from tokenizers import Tokenizer

    file = directory / TOKENIZER_FILE
    require_bounded_growth(read_json_mapping(file, what="the tokenizer"), file)
    with _readable(directory):
        backend = Tokenizer.from_file(str(file))
        backend.no_truncation()
        backend.no_padding()
        return backend


def added_text(backend: Any) -> str:
    """Every added token of a tokenizer, with and without a space around it."""
    tokens = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items())]
    return "a".join(tokens) + " " + " ".join(tokens)


def require_known_ids(directory: Path, vocab_size: int) -> None:
    """Refuse ids that the model has no embedding for (unused rows are fine), and tokens of other files."""
    words = dict(_vocabulary(directory))
    _require_below(words, vocab_size, directory)
    if (directory / TOKENIZER_FILE).exists():
        _require_declared(set(words), directory)


def _require_below(words: Mapping[str, int], vocab_size: int, directory: Path) -> None:
    beyond = sorted((index, token) for token, index in words.items() if index >= vocab_size)
    if beyond:
        named = ", ".join(f"{index} ({token!r:.40})" for index, token in beyond[:_NUM_NAMED])
        more = f" and {len(beyond) - _NUM_NAMED} more" if len(beyond) > _NUM_NAMED else ""
        raise VerificationError(
            "the tokenizer has ids beyond the model's embedding",
            where=str(directory),
            expected=f"ids below vocab_size, {vocab_size}",
            found=named + more,
            hint="use the tokenizer that belongs to the weights, or enlarge the embedding first",
        )


def _require_declared(words: set[str], directory: Path) -> None:
    """Refuse tokens that other files add to `tokenizer.json`: not everything that reads it has them.

    transformers gives each the next id, whether the model has an embedding for it or not.
    """
    missing = {token: name for token, name in _declared(directory) if token not in words}
    if missing:
        token, name = next(iter(missing.items()))
        raise VerificationError(
            "a token is declared beside the tokenizer that has none of this name",
            where=str(directory / name),
            expected=f"tokens of {TOKENIZER_FILE}",
            found=f"{token!r:.60}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            hint="save the tokenizer again with transformers, which writes it into tokenizer.json, "
            "or delete the declaration if no text holds the token",
        )


def _declared(directory: Path) -> Iterator[tuple[str, str]]:
    """Tokens that the files beside `tokenizer.json` name for use in texts, each with the file's name."""
    for name in (_CONFIG_FILE, "special_tokens_map.json"):
        if not (directory / name).exists():
            continue
        config = read_json_mapping(directory / name, what="the tokenizer's config")
        for key in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
            declared = config.get(key) or ()
            if not isinstance(declared, dict | list | tuple):
                raise VerificationError(
                    "the tokenizer's config does not list tokens",
                    where=f"{directory / name}: {key}",
                    expected="a list or a mapping",
                    found=type(declared).__name__,
                )
            entries = declared.values() if isinstance(declared, dict) else declared
            contents = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
            yield from ((content, name) for content in contents if isinstance(content, str))
    if (directory / _ADDED_FILE).exists():
        added = read_json_mapping(directory / _ADDED_FILE, what="the added tokens")
        yield from ((token, _ADDED_FILE) for token in added)


def _vocabulary(directory: Path) -> Iterator[tuple[str, int]]:
    """Tokens and ids of the tokenizer's JSON files; nothing where there are none."""
    file = directory / TOKENIZER_FILE
    if not file.exists():
        for name in ("vocab.json", _ADDED_FILE):
            if (directory / name).exists():
                words = read_json_mapping(directory / name, what="the vocabulary")
                yield from ((token, index) for token, index in words.items() if isinstance(index, int))
        return
    document = read_json_mapping(file, what="the tokenizer")
    try:
        vocab = document["model"]["vocab"]
        if isinstance(vocab, dict):
            yield from ((str(token), int(index)) for token, index in vocab.items())
        else:
            yield from ((str(piece[0]), index) for index, piece in enumerate(vocab))
        yield from ((str(entry["content"]), int(entry["id"])) for entry in document["added_tokens"] or ())
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VerificationError(
            "the tokenizer cannot be loaded", where=str(file), found=f"{type(error).__name__}: {error}"
        ) from error


def _require_roles(tokenizer: Any, backend: Any, directory: Path) -> None:
    """Refuse start and end tokens that the file lacks; forget other roles that no token has."""
    for role in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{role}_token")
        if token is None or backend.token_to_id(str(token)) is not None:
            continue
        if role in ("bos", "eos"):
            raise VerificationError(
                f"the tokenizer's {role} token is not in its vocabulary",
                where=str(directory / _CONFIG_FILE),
                expected=f"a token of {TOKENIZER_FILE}",
                found=token,
            )
        setattr(tokenizer, f"{role}_token", None)


def _converted(directory: Path, *, trust_remote_code: bool) -> Any:
    """The tokenizer that transformers makes of older files, if it keeps every character."""
    from transformers import AutoTokenizer

    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        _require_plain(directory / name)
    _refuse_inconvertible(directory)
    hint = f"put the model's own {TOKENIZER_FILE} beside them"
    with _readable(directory, hint=hint):
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
        for text in TOKENIZER_TEXTS[:3]:
            decoded = tokenizer.decode(
                tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False
            )
            if decoded.strip() != text.strip():
                raise VerificationError(
                    "transformers converts these tokenizer files to one that loses characters",
                    where=str(directory),
                    expected=repr(text[:60]),
                    found=repr(decoded[:60]),
                    hint=hint,
                )
    return tokenizer


def _refuse_inconvertible(directory: Path) -> None:
    config, code = directory / _CONFIG_FILE, None
    if config.exists():
        code = read_json_mapping(config, what="the tokenizer's config").get("auto_map")
    if code:
        raise UnsupportedError(
            f"this tokenizer is code of the model's own, and has no {TOKENIZER_FILE}",
            where=f"{config}: auto_map",
            expected=TOKENIZER_FILE,
            found=code,
            hint=f"put a {TOKENIZER_FILE} beside the weights that computes the same",
        )
    has_pairs = all((directory / name).exists() for name in _OLDER_FILES[1])
    if not has_pairs and find_spec("sentencepiece") is None:
        raise DependencyError(
            "tokenizer.model is only read with the sentencepiece library",
            where=str(directory),
            expected=f"{TOKENIZER_FILE}, or sentencepiece",
            found="tokenizer.model alone",
            hint=f"pip install sentencepiece, or put the model's own {TOKENIZER_FILE} beside it",
        )


def _require_plain(file: Path) -> None:
    if file.exists() and (not file.is_file() or file.stat().st_size > _MODEL_BYTES):
        raise VerificationError(
            "a file of the tokenizer cannot be read",
            where=str(file),
            expected=f"a file of at most {_MODEL_BYTES:,} bytes",
        )


@contextmanager
def _readable(directory: Path, *, hint: str | None = None) -> Iterator[None]:
    """Turn whatever the tokenizer libraries raise into one error: Rust's panics are not `Exception`s."""
    try:
        yield
    except (CompressExportError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise VerificationError(
            "the tokenizer cannot be loaded",
            where=str(directory),
            found=f"{type(error).__name__}: {error}",
            hint=hint,
        ) from error


def first_difference(expected: Any, found: Any, texts: Sequence[str]) -> str | None:
    """The first text that two tokenizers make other ids of, with and without special tokens.

    `expected` is a `tokenizers.Tokenizer`; `found` another one, or a tokenizer of transformers.
    """
    for text in texts:
        for special in (False, True):
            if callable(found):
                ids = found(text, add_special_tokens=special).input_ids
            else:
                ids = found.encode(text, add_special_tokens=special).ids
            if ids != expected.encode(text, add_special_tokens=special).ids:
                return text
    return None
