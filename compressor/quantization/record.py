"""The quantisation record of a unified FP8 checkpoint: what makes a loader apply its scales.

vLLM, SGLang and TensorRT-LLM read `hf_quant_config.json` or `quantization_config` of `config.json`. Without
either, or with layers left out that are FP8, weights are taken as they are stored, hundreds of times too
large, and without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import CONFIG_FILE, CheckpointReader, read_config
from compressor.models.dims import dims_of_config
from compressor.models.source import quantization_method
from compressor.quantization.coverage import K_SCALE, V_SCALE, quantised_linears
from compressor.runs.artifact import ARTIFACT_FILE

RECORD_FILE = "hf_quant_config.json"
_IN_CONFIG = "quantization_config"
_FP8, _E4M3 = "FP8", "F8_E4M3"
# Names of the methods whose checkpoints hold FP8 weights with scales.
_FP8_METHODS = ("modelopt", "fp8", "compressed-tensors")
_TENSOR = {"dynamic": False, "num_bits": 8, "type": "float"}
_RECORD_KEYS = ("quant_algo", "kv_cache_quant_algo", "exclude_modules", "group_size")
_CONFIG_KEYS = ("config_groups", "ignore", "quant_algo", "quant_method", "kv_cache_scheme", "producer")


def is_fp8(directory: Path, reader: CheckpointReader) -> bool:
    """Whether a checkpoint holds FP8 weights, or says so."""
    return (
        bool(read_config(directory).get(_IN_CONFIG))
        or (directory / RECORD_FILE).is_file()
        or any(reader.dtype(name) == _E4M3 for name in reader)
    )


def check_record(directory: Path, reader: CheckpointReader) -> None:
    """Refuse an FP8 checkpoint whose record is missing, or says something else than its tensors.

    A checkpoint made elsewhere by another method is unsupported, and named.
    """
    config, file = read_config(directory), directory / RECORD_FILE
    _refuse_other_method(config, directory)
    if not file.is_file() or not config.get(_IN_CONFIG):
        where = file if not file.is_file() else directory / CONFIG_FILE
        raise VerificationError(
            "an FP8 checkpoint lacks its quantisation record, so that loaders would ignore its scales",
            where=str(where),
            expected=f"{RECORD_FILE}, and {_IN_CONFIG} in {CONFIG_FILE}",
            hint="export again",
        )
    has_cache = any(name.endswith((K_SCALE, V_SCALE)) for name in reader)
    _check_file(read_json_mapping(file, what="the quantisation record"), config, has_cache=has_cache)
    _check_config(config, has_cache=has_cache)


def _refuse_other_method(config: Mapping[str, object], directory: Path) -> None:
    """Refuse what other tools quantised to something else than FP8: its tensors cannot be checked here."""
    method = quantization_method(config)
    ours = any((directory / name).is_file() for name in (RECORD_FILE, ARTIFACT_FILE))
    if method is not None and method not in _FP8_METHODS and not ours:
        raise UnsupportedError(
            f"a checkpoint quantised with {method} cannot be checked",
            where=f"{directory / CONFIG_FILE}: {_IN_CONFIG}.quant_method",
            expected=f"16- or 32-bit weights, or FP8 ({', '.join(_FP8_METHODS)})",
            found=method,
            hint="check the checkpoint it was quantised from",
        )


def _check_file(record: Mapping[str, object], config: Mapping[str, object], *, has_cache: bool) -> None:
    found = record.get("quantization")
    if not isinstance(found, dict):
        raise _wrong(f"{RECORD_FILE}: quantization", "an object", found)
    where = f"{RECORD_FILE}: quantization."
    _expect(f"{where}quant_algo", _FP8, found.get("quant_algo"))
    _expect(f"{where}kv_cache_quant_algo", _FP8 if has_cache else None, found.get("kv_cache_quant_algo"))
    _expect(f"{where}group_size", None, found.get("group_size"))
    _check_excluded(f"{where}exclude_modules", found.get("exclude_modules"), config)
    _refuse_unknown(where, found, _RECORD_KEYS)


def _check_config(config: Mapping[str, object], *, has_cache: bool) -> None:
    found, where = config[_IN_CONFIG], f"{CONFIG_FILE}: {_IN_CONFIG}."
    if not isinstance(found, dict):
        raise _wrong(where.rstrip("."), "an object", found)
    _expect(f"{where}quant_method", "modelopt", found.get("quant_method"))
    _expect(f"{where}quant_algo", _FP8, found.get("quant_algo"))
    group = {"input_activations": _TENSOR, "weights": _TENSOR}
    groups = found.get("config_groups")
    stated = list(groups.values()) if isinstance(groups, dict) else groups
    targets = stated[0].get("targets", ["Linear"]) if stated and isinstance(stated[0], dict) else None
    _expect(f"{where}config_groups", [{**group, "targets": ["Linear"]}], _with_targets(stated, targets))
    _expect(f"{where}kv_cache_scheme", _TENSOR if has_cache else None, found.get("kv_cache_scheme"))
    _check_excluded(f"{where}ignore", found.get("ignore"), config)
    _refuse_unknown(where, found, _CONFIG_KEYS)


def _with_targets(stated: Any, targets: Any) -> Any:
    """Groups with the targets that older writers leave out."""
    if not isinstance(stated, list) or not all(isinstance(group, dict) for group in stated):
        return stated
    return [{**group, "targets": targets} for group in stated]


def _check_excluded(where: str, patterns: Any, config: Mapping[str, object]) -> None:
    """What is left out is exactly what is not FP8: no layer of the decoder, and the LM head."""
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise _wrong(where, "a list of names", patterns)
    for name in quantised_linears(config):
        if any(_matches(name, pattern) for pattern in patterns):
            raise _wrong(where, f"without {name}, which is FP8", patterns)
    head = dims_of_config(config).family.lm_head
    if not any(_matches(head, pattern) for pattern in patterns):
        raise _wrong(where, f"with {head}, which is not FP8", patterns)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern is for this module, or for one that holds it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


def _refuse_unknown(where: str, found: Mapping[str, object], known: tuple[str, ...]) -> None:
    for name in sorted(set(found) - set(known)):
        if found[name] is not None:
            raise _wrong(where + name, "no such field", found[name])


def _expect(where: str, expected: object, found: object) -> None:
    if expected != found:
        raise _wrong(where, expected, found)


def _wrong(where: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        "the quantisation record says something else than the tensors",
        where=where,
        expected=expected,
        found=found,
        hint="export again",
    )
