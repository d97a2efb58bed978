"""`sbom.cdx.json`: software, models and texts of a run as a CycloneDX 1.6 bill of materials.

Software is this tool and every installed distribution that it requires, directly or not. The format is that
of ECMA-424, <https://cyclonedx.org/docs/1.6/json/>; tests check it by the published schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compressor.bundle.licence import UNKNOWN
from compressor.bundle.lineage import LineageRecord
from compressor.runs.artifact import ModelArtifact, write_json

BOM_FILE = "sbom.cdx.json"
_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_TOOL = "compress-export"
_WEIGHTS = (".safetensors", ".onnx", ".data", ".gguf", ".bin", ".engine")
_STUDENT = "student"
_EXPORTS = "exports/"
# A name of our own for ids that are the same whenever the content is.
_NAMESPACE = uuid.UUID("5f9a4b3e-6c0d-5f0e-9a58-0b6f0c4d7d21")


def bill_of_materials(
    lineage: LineageRecord,
    made: Mapping[str, ModelArtifact],
    *,
    name: str,
    versions: Mapping[str, str],
    texts: Mapping[str, str],
) -> dict[str, object]:
    """The bill of a run, equal for equal content.

    Args:
        lineage: Where everything comes from.
        made: The run's artifacts by directory.
        name: What the student is called.
        versions: Libraries and their versions, as the run recorded them.
        texts: Names of texts -> their fingerprints.
    """
    student = made[_STUDENT]
    software = dict(_software(versions))
    models = [_model(place, artifact, lineage) for place, artifact in made.items() if _is_released(place)]
    released = [str(model["bom-ref"]) for model in models]
    data = [_text(text, fingerprint) for text, fingerprint in sorted(texts.items())]
    base = _base(lineage)
    return {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, student.fingerprint)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [_tool(versions)]},
            "component": {
                "type": "application",
                "bom-ref": "release",
                "name": name,
                "version": student.fingerprint[:12],
                "description": "A compressed language model and its exports",
            },
        },
        "components": [base, *models, *data, *software.values()],
        "dependencies": [
            {"ref": "release", "dependsOn": [*released, *sorted(software)]},
            *({"ref": ref, "dependsOn": [str(base["bom-ref"])]} for ref in released),
        ],
    }


def write_bom(out_dir: Path, bill: Mapping[str, object]) -> None:
    """Write `sbom.cdx.json`."""
    write_json(out_dir / BOM_FILE, bill)


def _is_released(place: str) -> bool:
    return place == _STUDENT or place.startswith(_EXPORTS)


def _base(lineage: LineageRecord) -> dict[str, object]:
    teacher = lineage.teacher
    found: dict[str, object] = {
        "type": "machine-learning-model",
        "bom-ref": "model:teacher",
        "name": teacher.name,
        "description": "The base model",
        "properties": _properties(fingerprint=teacher.fingerprint, parameters=teacher.num_parameters),
    }
    if teacher.revision:
        owner, _, model = teacher.name.partition("/")
        found |= {
            "version": teacher.revision,
            "purl": f"pkg:huggingface/{quote(owner)}/{quote(model)}@{quote(teacher.revision)}",
        }
    if teacher.file_sha256:
        found["hashes"] = [{"alg": "SHA-256", "content": teacher.file_sha256}]
    return found | _licences(lineage)


def _model(place: str, artifact: ModelArtifact, lineage: LineageRecord) -> dict[str, object]:
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{place}/{name}",
            "name": f"{place}/{name}",
            "hashes": [{"alg": "SHA-256", "content": record["sha256"]}],
        }
        for name, record in artifact.files.items()
        if name.endswith(_WEIGHTS)
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{place}",
        "name": place,
        "version": artifact.fingerprint[:12],
        "description": f"Made by {', '.join(artifact.lineage[1:])} from {lineage.teacher.name}",
        "components": files,
        "properties": _properties(fingerprint=artifact.fingerprint, parameters=artifact.num_parameters),
        **_licences(lineage),
    }


def _licences(lineage: LineageRecord) -> dict[str, object]:
    """The base model's licence by its name: not every one has an SPDX identifier."""
    identifier = lineage.teacher.terms.identifier
    return {} if identifier == UNKNOWN else {"licenses": [{"license": {"name": identifier}}]}


def _text(name: str, fingerprint: str) -> dict[str, object]:
    return {
        "type": "data",
        "bom-ref": f"text:{fingerprint}",
        "name": name,
        "description": "Text that was read for calibration, training or evaluation",
        "properties": _properties(fingerprint=fingerprint),
    }


def _properties(**values: object) -> list[dict[str, str]]:
    return [{"name": f"{_TOOL}:{name}", "value": str(value)} for name, value in values.items()]


def _tool(versions: Mapping[str, str]) -> dict[str, object]:
    return {"type": "application", "name": _TOOL, "version": versions.get(_TOOL, UNKNOWN)}


def _software(versions: Mapping[str, str]) -> Iterator[tuple[str, dict[str, object]]]:
    """Libraries by their package URL: all that are required, and what the run recorded beside them."""
    found = {str(canonicalize_name(name)): number for name, number in versions.items() if number != "absent"}
    found = {**_required(_TOOL), **found}
    found.pop("python", None)
    for name, number in sorted(found.items()):
        url = f"pkg:pypi/{quote(name)}@{quote(number)}"
        yield url, {"type": "library", "bom-ref": url, "name": name, "version": number, "purl": url}


def _required(name: str) -> dict[str, str]:
    """Installed distributions that one requires, itself among them; nothing where it is not installed."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        own = str(canonicalize_name(waiting.pop()))
        installed = None if own in found else _installed(own)
        if installed is None:
            continue
        found[own] = installed.version
        for line in installed.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
