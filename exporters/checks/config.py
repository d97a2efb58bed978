"""A made checkpoint's config and tokenizer against those of the checkpoint that it was made from.

Two readings, because each sees what the other does not: the raw fields of both generations of
transformers, and what transformers itself makes of the source's own file, class defaults included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import CONFIG_FILE, DTYPE_NAMES, CheckpointReader, read_config
from compressor.models.config.portable import portable_config
from compressor.models.tokenizer import TOKENIZER_FILE
from compressor.models.tokenizer_files import portable_tokenizer_config
from compressor.quantization.amax import FP8_DIRECTORY
from exporters.checks.equality import expect_equal_fields, expect_fields, expect_same_file

_UNCHANGED_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Names of classes and of where a tokenizer was loaded from: they differ between the generations.
_TOKENIZER_CLASS_KEYS = frozenset({"tokenizer_class", "backend", "is_local", "local_files_only", "auto_map"})
# Of no influence on what is computed: who wrote the file, code that does not travel, and the dtype, which
# tensors are checked for.
_PROVENANCE = frozenset(
    {"dtype", "torch_dtype", "_name_or_path", "_model_name_or_path", "transformers_version", "auto_map"}
)
# They store every tensor in the dtype that their config says.
_OF_ONE_DTYPE = frozenset(
    {"prune", "prune-masks", "reconstruct", "sparsify", "correct", "distill", "recover"}
)
_FP8 = DTYPE_NAMES[torch.float8_e4m3fn]
# Says which layers differ by their index; where layers go, `layer_types` says it layer by layer instead.
_BY_INDEX = frozenset({"max_window_layers"})


def check_config(
    directory: Path,
    source: Path,
    *,
    changed: Mapping[str, object] | None = None,
    layers: Sequence[int] | None = None,
    without: frozenset[str] = frozenset(),
) -> str:
    """Refuse a config that says something else than the source's.

    Fields that are `changed` must have these values instead; where only some `layers` of the source are
    kept, fields with one entry per layer follow; those in `without` are not compared. Returns what was found
    equal, for the report.
    """
    changed = dict(changed or {})
    ignored = _PROVENANCE | without | (_BY_INDEX if layers is not None else frozenset())
    raw = read_config(directory)
    defaults = _as_transformers_reads(source)
    _compare(
        expected=_kept(portable_config(read_config(source)), layers) | changed,
        found=raw,
        ignored=ignored,
        where=directory,
        # A field may be written out that the source leaves to its class.
        defaults=_kept(defaults, layers),
    )
    _compare(
        expected=_kept(defaults, layers) | changed,
        found=_as_transformers_reads(directory),
        ignored=ignored,
        where=directory,
        defaults={},
    )
    return "equal to the source's, but for the planned axes" if changed else "equal to the source's"


def check_tokenizer_files(directory: Path, source: Path) -> None:
    """Refuse tokenizer, chat template or generation settings that are not the source's."""
    for name in _UNCHANGED_FILES:
        expect_same_file(name, source, directory)
    if not (source / _TOKENIZER_CONFIG).is_file():
        return
    expected, found = (
        read_json_mapping(path / _TOKENIZER_CONFIG, what="the tokenizer's config")
        for path in (source, directory)
    )
    if (directory / TOKENIZER_FILE).is_file():
        expected = portable_tokenizer_config(expected, directory)
    expected, found = (
        {key: value for key, value in config.items() if key not in _TOKENIZER_CLASS_KEYS}
        for config in (expected, found)
    )
    what = "the tokenizer's config differs from the source's"
    expect_equal_fields(what, expected, found, where=f"{directory / _TOKENIZER_CONFIG}: ")


def check_own_config(directory: Path, *, lineage: Sequence[str]) -> None:
    """Refuse a config of ours that says what no writer of ours does: code to run, or a dtype not stored.

    From the first stage of the `lineage` that stores every tensor in one dtype on, that is the config's; a
    copy of a source made elsewhere says what the source says.
    """
    is_uniform = not _OF_ONE_DTYPE.isdisjoint(lineage)
    for checkpoint in (directory, directory / FP8_DIRECTORY):
        if not (checkpoint / CONFIG_FILE).is_file():
            continue
        config = read_config(checkpoint)
        if "auto_map" in config:
            raise VerificationError(
                "the config names code of the model's own, which no stage or export writes",
                where=f"{checkpoint / CONFIG_FILE}: auto_map",
                expected="no such field",
                found=config["auto_map"],
            )
        if is_uniform:
            _check_dtype(checkpoint, config)


def _check_dtype(directory: Path, config: dict[str, object]) -> None:
    """Refuse a config whose dtype is not that of the tensors, FP8 weights and scales aside."""
    with CheckpointReader(directory) as reader:
        stored = {name: reader.dtype(name) for name in reader if not name.endswith("_scale")}
    for field in ("dtype", "torch_dtype"):
        dtype_of_config: Any = getattr(torch, str(config.get(field)), None)
        stated = DTYPE_NAMES.get(dtype_of_config)
        for name, dtype in stored.items():
            if dtype not in (stated, _FP8):
                raise VerificationError(
                    "the config says another dtype than the tensors have",
                    where=f"{directory / CONFIG_FILE}: {field}",
                    expected=f"{dtype}, as {name}",
                    found=config.get(field),
                )


def _kept(config: dict[str, object], layers: Sequence[int] | None) -> dict[str, object]:
    """The config with the entries of kept layers in every field that has one entry per layer."""
    if layers is None:
        return config
    count = config["num_hidden_layers"]
    return {
        key: [value[index] for index in layers] if isinstance(value, list) and len(value) == count else value
        for key, value in config.items()
    }


def _as_transformers_reads(directory: Path) -> dict[str, object]:
    """Every field that transformers gives a model of this directory."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # its own strict validation raises classes of huggingface_hub
        raise VerificationError(
            "transformers cannot read the config", where=str(directory / CONFIG_FILE), found=error
        ) from error
    plain: dict[str, object] = json.loads(json.dumps(config.to_dict(), default=str))
    return plain


def _compare(
    *,
    expected: Mapping[str, object],
    found: Mapping[str, object],
    ignored: frozenset[str],
    where: Path,
    defaults: Mapping[str, object],
) -> None:
    names = sorted({*expected, *found} - ignored)
    wanted = {name: expected[name] if name in expected else defaults.get(name) for name in names}
    what = "the config differs from that of the model it was made from"
    expect_fields(what, wanted, found, where=f"{where / CONFIG_FILE}: ")
