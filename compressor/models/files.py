"""Whether the files of a model directory are files, and its own.

A directory may come from anyone. What is read and copied from it must lie in it: a link to somewhere else
would carry a foreign file into every student and export. The hub's cache is made of links from
`models--NAME/snapshots/REVISION` to `models--NAME/blobs`, and a directory that its library filled may link
there too, so these are followed.
"""

from __future__ import annotations

import stat
from pathlib import Path

from compressor.choices.formats import FORMATS, STUDENT_FORMAT
from compressor.core.errors import UnsupportedError, VerificationError
from compressor.core.json_files import read_json_mapping

ADAPTER_CONFIG = "adapter_config.json"
# What any part of the project opens or copies from a model directory.
_READ_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".py")
_TEMPLATES = "additional_chat_templates"
_COMPARED = "compress-export verify DIR --source MODEL compares the two"
_MEASURED = "compress-export evaluate MODEL DIR --data SOURCE measures DIR, where it has its artifact.json"


def check_files(directory: Path) -> None:
    """Refuse, by name, what is no regular file of this directory, before anything is opened."""
    root = directory.resolve()
    for path in sorted([*directory.iterdir(), *directory.glob(f"{_TEMPLATES}/*")]):
        if path.name.endswith(_READ_SUFFIXES):
            _check_file(path, root)


def is_own(target: Path, root: Path) -> bool:
    """Whether a file, its links followed, lies below a directory or among the blobs of the hub's cache."""
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return in_cache or target.is_relative_to(root)


def refuse_adapter_directory(directory: Path) -> None:
    """Refuse an adapter: it holds differences to a base model, and transformers would load that base."""
    file = directory / ADAPTER_CONFIG
    if file.is_file():
        base = read_json_mapping(file, what=ADAPTER_CONFIG).get("base_model_name_or_path")
        raise UnsupportedError(
            "this directory is an adapter, not a model",
            where=str(file),
            expected="a whole checkpoint",
            found=f"an adapter of {base}",
            hint=f"merge it into {base} with peft's merge_and_unload() and give the merged model",
        )


def refuse_export(directory: Path) -> None:
    """Refuse what was exported for a runtime: a graph or an engine's checkpoint is executed, not read.

    Where this machine executes it, the hint says how its quality is measured.
    """
    if any(directory.glob("*.safetensors")):
        return
    for row in FORMATS.values():
        hints = ("name the model that was exported", _COMPARED, *([_MEASURED] if row.executor else []))
        if row.marker != FORMATS[STUDENT_FORMAT].marker and (directory / row.marker).is_file():
            raise UnsupportedError(
                "this directory is an export for a runtime, and cannot be read as a model",
                where=str(directory),
                expected="a Hugging Face checkpoint, or a .gguf file",
                found=f"{row.marker}, of an export --format {row.option}",
                hint="; ".join(hints),
            )


def _check_file(path: Path, root: Path) -> None:
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise VerificationError(
            "a link in the model directory points to a file that does not exist",
            where=str(path),
            found=error,
            hint="remove the link, or put back the file that it names",
        ) from error
    if not stat.S_ISREG(mode):
        raise VerificationError(
            "the model directory holds something that is not a file",
            where=str(path),
            expected="a regular file",
            found="a directory" if stat.S_ISDIR(mode) else "a FIFO, a socket or a device",
            hint="move it out of the model directory",
        )
    if not is_own(target, root):
        raise VerificationError(
            "a link leaves the model directory",
            where=str(path),
            expected=f"a file below {root}, or in the hub's cache",
            found=str(target),
            hint="copy the file in place of the link if it belongs to the model",
        )
