"""The files that travel beside the weights: tokenizer, chat templates, generation settings and licences.

Only plain files of the directory itself are taken: no FIFO, no device, and no link that leads elsewhere, but
into the hub's cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import MAX_BYTES, read_json_mapping
from compressor.models.files import is_own
from compressor.models.tokenizer import TOKENIZER_FILE, has_tokenizer, load_tokenizer

PORTABLE_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
GENERATION_CONFIG_FILE = "generation_config.json"
_CONFIG_FILE = "tokenizer_config.json"
_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "chat_template.json",
    "vocab.*",
    "merges.txt",
    GENERATION_CONFIG_FILE,
)
# Licences and what belongs to them, by the names that people give them: `LICENSE.txt`, `Llama-License.md`.
_LICENCE = re.compile(
    r"(.*licen[cs]e.*|copying.*|notices?([^a-z].*)?|(acceptable[-_ ])?use[-_ ]policy.*|third[-_ ]?part.*)",
    re.IGNORECASE,
)
_NO_LICENCES = (".py", ".json", ".jsonl", ".safetensors", ".bin", ".pt", ".gguf")
# transformers writes these for itself; code of the tokenizer's own does not travel with it.
_LOCAL_KEYS = ("auto_map", "backend", "is_local", "local_files_only")


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the files beside the weights, and let both generations of transformers read them alike.

    A tokenizer that has no `tokenizer.json` gets one.
    """
    for name, file in companion_files(source):
        (destination / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, destination / name)
    if has_tokenizer(source) and not (source / TOKENIZER_FILE).exists():
        load_tokenizer(source).backend_tokenizer.save(str(destination / TOKENIZER_FILE))
    make_tokenizer_portable(destination)


def companion_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of every file that travels with the weights.

    Raises:
        VerificationError: for a link that leaves the directory, a special or an enormous file.
    """
    found = [file for pattern in _PATTERNS for file in sorted(directory.glob(pattern))]
    beside = sorted([*directory.glob("*"), *directory.glob("*/*")])
    found += [path for path in beside if is_licence(path.relative_to(directory).as_posix())]
    for file in dict.fromkeys(found):
        if file.is_dir():
            continue
        _require_own(file, directory)
        yield str(file.relative_to(directory)), file


def is_licence(name: str) -> bool:
    """Whether a path below a model's directory is a licence's, or of a directory of licences."""
    first, *below = name.split("/")
    if len(below) > 1 or _LICENCE.fullmatch(first) is None:
        return False
    return Path(name).suffix.lower() not in _NO_LICENCES


def tokenizer_digest(directory: Path) -> str:
    """sha256 over a tokenizer's files, names included; a UsageError where there are none."""
    if not has_tokenizer(directory):
        raise UsageError(
            "this directory holds no tokenizer",
            where=str(directory),
            hint=f"give a directory that holds {TOKENIZER_FILE}",
        )
    digest = hashlib.sha256()
    for name, file in companion_files(directory):
        content = file.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def make_tokenizer_portable(directory: Path) -> None:
    """Name the class that computes in both generations what `tokenizer.json` says.

    Every other name makes transformers 5, or 4.57, build a tokenizer again by its own rules.
    """
    file = directory / _CONFIG_FILE
    if not file.is_file() or not (directory / TOKENIZER_FILE).is_file():
        return
    config = read_json_mapping(file, what="the tokenizer's config")
    portable = portable_tokenizer_config(config, directory)
    if portable != config:
        file.write_text(json.dumps(portable, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def portable_tokenizer_config(config: Mapping[str, object], directory: Path) -> dict[str, object]:
    """A tokenizer's config by which both generations read the `tokenizer.json` of a directory alike."""
    portable = {key: value for key, value in config.items() if key not in _LOCAL_KEYS}
    portable["tokenizer_class"] = PORTABLE_TOKENIZER_CLASS
    pre_tokenizer = read_json_mapping(directory / TOKENIZER_FILE, what="the tokenizer").get("pre_tokenizer")
    if isinstance(pre_tokenizer, dict) and "add_prefix_space" in pre_tokenizer:
        # transformers 4.57 changes the file's rule into the config's, whose default is no prefix.
        prefixed = pre_tokenizer["add_prefix_space"]
        if prefixed != portable.get("add_prefix_space", False):
            portable["add_prefix_space"] = prefixed
    return portable


def _require_own(file: Path, directory: Path) -> None:
    real = file.resolve()
    if not is_own(real, directory.resolve()):
        raise VerificationError(
            "a file beside the weights is a link that leaves its directory", where=str(file), found=str(real)
        )
    if not real.is_file():
        raise VerificationError("a file beside the weights is not a plain file", where=str(file))
    if real.stat().st_size > MAX_BYTES:
        raise VerificationError(
            "a file beside the weights is too large",
            where=str(file),
            expected=f"at most {MAX_BYTES:,} bytes",
            found=f"{real.stat().st_size:,} bytes",
        )
