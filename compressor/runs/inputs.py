"""What decides a stage's output, and how two records of it are told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compressor.core.errors import UsageError

# How the fingerprint of a text begins that lies on this machine: of its bytes, or of its documents.
OF_BYTES, OF_DOCUMENTS = "sha256:", "documents:"
# Fields of configurations that name a text; `Stage.data` says which of them a stage reads.
_TEXT_FIELDS = ("data", "prompts")


def is_local_fingerprint(fingerprint: str) -> bool:
    """Whether a text's fingerprint is that of a local text, wherever that lies; else of one on the hub."""
    return fingerprint.startswith((OF_BYTES, OF_DOCUMENTS))


def plain_inputs(inputs: Mapping[str, object], *, libraries: Sequence[str]) -> dict[str, object]:
    """Everything that decides a stage's output as plain JSON values, the versions of libraries among it."""
    versions = {name: version_of(name) for name in libraries}
    plain: dict[str, object] = json.loads(json.dumps({**inputs, "versions": versions}))
    return plain


def comparable(inputs: Mapping[str, object]) -> dict[str, object]:
    """Inputs without what does not decide a stage's output: the places of local texts and stored logits.

    A text that was moved, or is named by another path, is the same text by its fingerprint. One that a stage
    does not read, such as the prompts of text that another stage sampled, decides nothing.
    """
    data = {spec: str(found) for spec, found in _mapping(inputs.get("data")).items()}
    names = {spec: found for spec, found in data.items() if is_local_fingerprint(found)}
    logits = _mapping(inputs.get("others")).get("teacher_logits")

    def plain(value: object, key: str = "") -> object:
        if key == "teacher_logits" and logits is not None:
            return logits
        if isinstance(value, str) and key in _TEXT_FIELDS and value not in data:
            return None
        if isinstance(value, dict):
            return {name: plain(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return names.get(value, value) if isinstance(value, str) else value

    rest = {name: plain(value, name) for name, value in inputs.items() if name != "data"}
    return {**rest, "data": {names.get(spec, spec): found for spec, found in data.items()}}


def differences(before: Mapping[str, object], now: Mapping[str, object], prefix: str = "") -> list[str]:
    """Which leaves of two input records differ, as `name: before -> now`."""
    found: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found


def refuse_difference(
    stage: str, record: Path, before: Mapping[str, object], now: Mapping[str, object], *, redo: str
) -> None:
    """Refuse to continue or to skip what was made from other inputs: those of `before`, which `record` holds.

    `redo` says how it is made again.

    Raises:
        UsageError: naming what changed.
    """
    if comparable(before) == comparable(now):
        return
    changed, where = differences(before, now), record.parent
    if "stage" in before and before["stage"] != now.get("stage"):
        raise UsageError(
            f"{where} holds the {before['stage']} stage, not that of {stage}",
            where=str(record),
            hint=f"choose another --output-dir; or, to discard it: {redo}",
        )
    if changed:
        raise UsageError(
            f"{where} holds the {stage} stage of a different run",
            where=str(record),
            found="; ".join(changed),
            hint=f"choose another --output-dir; or, to discard it: {redo}",
        )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def version_of(name: str) -> str:
    """The version of an installed distribution, or that it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
