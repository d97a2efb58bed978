"""GGUF files: their header as dimensions, and their weights dequantised into a safetensors checkpoint.

The conversion is our own, so that nothing is left out silently: every field, tensor and pre-tokenizer is
read or refused by name. Its outside check is llama.cpp itself (tests/oracles).
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import cast

from compressor.models.dims import Dims, dims_of_config, num_parameters
from compressor.models.gguf.fields import Fields, config_of
from compressor.models.gguf.header import GgufHeader, read_header
from compressor.models.gguf.rope import rope_scaling_fields
from compressor.models.gguf.tensors import check_names, weight_specs
from compressor.models.gguf.tokenizer import (
    require_same_tokens,
    special_token_ids,
    token_id_fields,
    write_tokenizer,
)
from compressor.models.tokenizer import require_known_ids
from compressor.models.tokenizer_files import GENERATION_CONFIG_FILE, copy_tokenizer, tokenizer_digest
from compressor.runs.artifact import (
    ARTIFACT_FILE,
    ModelArtifact,
    fingerprint_of,
    record_files,
    sha256_of_file,
    sync_tree,
)
from compressor.runs.discarding import discard
from compressor.runs.locking import flock, open_lock

# Part of the name of a conversion: one made by other rules is not used again.
_FORMAT = 2


def gguf_dims(path: Path) -> Dims:
    """A model's dimensions from its header, without reading weights.

    Raises:
        UsageError: for a path that is not a file.
        VerificationError: for a truncated or incomplete file.
        UnsupportedError: for an architecture, field or tensor that no model here has a place for.
    """
    return _read(path)[2]


def convert_gguf(path: Path, scratch: Path, dtype: str, *, tokenizer: Path | None = None) -> Path:
    """Dequantise a GGUF file into a safetensors checkpoint under `scratch`, once; returns its directory.

    Commands that start at the same time wait for the first of them to convert. The files of a `tokenizer`
    directory replace the file's own vocabulary. For what cannot be converted see `gguf_dims`.
    """
    dims = gguf_dims(path)
    digest = sha256_of_file(path)
    name = f"{path.stem.lower()}-{digest[:12]}-{dtype}-v{_FORMAT}"
    if tokenizer is not None:
        name += f"-{tokenizer_digest(tokenizer)[:12]}"
    directory = scratch / name
    if (directory / ARTIFACT_FILE).is_file():
        return directory
    scratch.mkdir(parents=True, exist_ok=True)
    with open_lock(scratch / f".{directory.name}.lock") as lock:
        flock(lock, fcntl.LOCK_EX, where=scratch)
        if not (directory / ARTIFACT_FILE).is_file():
            partial = directory.with_name(directory.name + ".partial")
            for unfinished in (directory, partial):
                discard(unfinished)
            _convert(path, partial, dtype, tokenizer)
            inputs = {"gguf": digest, "dtype": dtype, "format": _FORMAT}
            # By its files the conversion is checked whenever it is used again.
            ModelArtifact(
                path=partial,
                stage="source",
                fingerprint=fingerprint_of(inputs),
                lineage=("source",),
                num_parameters=num_parameters(dims),
                inputs=inputs,
                files=record_files(partial),
            ).write()
            sync_tree(partial)
            partial.rename(directory)
    return directory


def _read(path: Path) -> tuple[GgufHeader, dict[str, object], Dims]:
    """The header, and what it says as a config and as dimensions."""
    header = read_header(path)
    fields = Fields(header)
    config = {**config_of(fields), **rope_scaling_fields(fields)}
    dims = dims_of_config(config)
    check_names(header, dims)
    return header, config, dims


def _convert(path: Path, out_dir: Path, dtype: str, tokenizer: Path | None) -> None:
    import torch

    from compressor.models.checkpoint import write_checkpoint
    from compressor.models.config.portable import write_config

    header, config, dims = _read(path)
    specs = weight_specs(header, dims, getattr(torch, dtype))
    out_dir.mkdir()
    # The tokenizer first: what cannot be read of it is refused before the long part.
    if tokenizer is None:
        write_tokenizer(header, out_dir, max_length=cast(int, config["max_position_embeddings"]))
    else:
        copy_tokenizer(tokenizer, out_dir)
        require_same_tokens(header, out_dir)
    require_known_ids(out_dir, dims.vocab_size)
    token_ids, generation = token_id_fields(special_token_ids(header))
    write_config(out_dir, {**config, **token_ids, "dtype": dtype})
    if not (out_dir / GENERATION_CONFIG_FILE).is_file():
        text = json.dumps(generation, indent=2) + "\n"
        (out_dir / GENERATION_CONFIG_FILE).write_text(text, encoding="utf-8")
    write_checkpoint(out_dir, specs)
