"""GGUF files: their header as dimensions, and their weights dequantised into a safetensors checkpoint."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

from compressor.artifact import sha256_of_file, sync_tree
from compressor.errors import VerificationError
from compressor.models.dims import Dims, dims_of_config
from compressor.models.families import family_of


def gguf_dims(path: Path) -> Dims:
    """A model's dimensions from its header, without reading weights.

    Raises:
        VerificationError: for a truncated or incomplete file.
        UnsupportedError: for an architecture the table of families does not hold.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise VerificationError(
            "the GGUF file is truncated or corrupt", where=str(path), found=error
        ) from error

    def field(key: str) -> Any:
        if key not in reader.fields:
            raise VerificationError(
                "the GGUF file lacks a field", where=str(path), expected=key, hint="is it a language model?"
            )
        return reader.fields[key]

    architecture = field("general.architecture").contents()
    family_of(architecture)

    def value(key: str, default: Any = None) -> Any:
        name = f"{architecture}.{key}"
        return field(name).contents() if default is None or name in reader.fields else default

    names = {tensor.name for tensor in reader.tensors}
    hidden_size, num_heads = value("embedding_length"), value("attention.head_count")
    return dims_of_config(
        {
            "model_type": architecture,
            "hidden_size": hidden_size,
            "intermediate_size": value("feed_forward_length"),
            "num_hidden_layers": value("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": value("attention.head_count_kv", num_heads),
            "head_dim": value("attention.key_length", hidden_size // num_heads),
            "vocab_size": value("vocab_size", len(field("tokenizer.ggml.tokens").data)),
            "tie_word_embeddings": "output.weight" not in names,
        }
    )


def convert_gguf(path: Path, scratch: Path, dtype: str) -> Path:
    """Dequantise a GGUF file into a safetensors checkpoint under `scratch`, once; returns its directory.

    Commands that start at the same time wait for the first of them to convert.

    Raises:
        VerificationError, UnsupportedError: for what cannot be converted.
    """
    gguf_dims(path)
    directory = scratch / f"{path.stem.lower()}-{sha256_of_file(path)[:12]}-{dtype}"
    if directory.is_dir():
        return directory
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            partial = directory.with_name(directory.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _convert(path, partial, dtype)
            partial.rename(directory)
    return directory


def _convert(path: Path, out_dir: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from compressor.models.portable import make_portable
    from compressor.models.shapes import refuse_misfit

    model, report = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        output_loading_info=True,
    )
    refuse_misfit(report, path)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out_dir)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    for role in ("bos", "eos", "pad", "unk"):
        # The converted tokenizer can disagree with the file's own metadata (an end token that is the
        # start token); the metadata decides.
        token_id = getattr(model.config, f"{role}_token_id", None)
        if token_id is not None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(token_id))
    tokenizer.save_pretrained(out_dir)
    make_portable(out_dir)
    sync_tree(out_dir)
