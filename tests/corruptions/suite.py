"""Plants every fault in a copy of its artifact, twice, and says whether `verify` finds it.

*Plain*: the files are altered after the fact; their sums say so. *Consistent*: the record is made again
from the altered files, as a writer would that wrote them wrongly; only a second source says so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compressor.runs.artifact import sealed, sha256_of_file
from compressor.runs.manifest import MANIFEST_FILE
from tests.corruptions.artifacts import CHAT, EDGE, EDGE_FP8, RUN, TEXT, Made
from tests.corruptions.chat_faults import chat_faults
from tests.corruptions.edge_faults import edge_faults
from tests.corruptions.export_faults import int4_faults, onnx_faults, run_faults, trtllm_faults
from tests.corruptions.faults import (
    VERIFICATION,
    Fault,
    adapter_faults,
    config_faults,
    delete,
    fp8_faults,
    plan_faults,
    record_faults,
    rotation_faults,
    sparsity_faults,
    weight_faults,
)
from tests.corruptions.perplexity_faults import perplexity_faults
from tests.corruptions.standard_faults import standard_faults
from tests.integration.command import command_here
from tests.records import record_again

CONTROL = "no fault"
VERIFICATION_FAILED = 8

_SPARSE = [*weight_faults(), *config_faults(), *record_faults(), *sparsity_faults()]
_EXPORT = [
    *record_faults(),
    Fault(name="verification deleted", plant=delete(VERIFICATION), only_plain=True),
]
_FP8 = "huggingface-fp8/"
FAULTS: dict[str, list[Fault]] = {
    "prune": [*weight_faults(), *config_faults(), *record_faults(), *plan_faults()],
    "prune (rotation)": [
        *(fault for fault in weight_faults() if fault.name != "norms swapped"),  # all of them are 1
        *config_faults(),
        *record_faults(),
        *plan_faults(),
        *rotation_faults(),
    ],
    "reconstruct": [*weight_faults(), *config_faults(), *record_faults(), *plan_faults()],
    "reconstruct (2:4)": _SPARSE,
    "distill": [*weight_faults(), *config_faults(), *record_faults()],
    "sparsify (sparsegpt)": _SPARSE,
    "sparsify (wanda)": _SPARSE,
    "recover (ast)": _SPARSE,
    "adapter, fixed": [*_SPARSE, *adapter_faults()],
    "adapter, trained": [*_SPARSE, *adapter_faults()],
    "quantize": [
        *weight_faults(),
        *config_faults(),
        *record_faults(),
        *fp8_faults(f"{_FP8}model.safetensors"),
        *(
            Fault(name=f"FP8 copy: {fault.name}", plant=fault.plant)
            for fault in (*weight_faults(f"{_FP8}model.safetensors"), *config_faults(_FP8))
        ),
        Fault(name="amax deleted", plant=delete("amax.safetensors")),
        Fault(name="FP8 record deleted", plant=delete(f"{_FP8}hf_quant_config.json")),
    ],
    "reconstruct (FP8)": [
        *weight_faults(),
        *config_faults(),
        *record_faults(),
        *fp8_faults(f"{_FP8}model.safetensors"),
        *(
            Fault(name=f"FP8 copy: {fault.name}", plant=fault.plant)
            for fault in (*weight_faults(f"{_FP8}model.safetensors"), *config_faults(_FP8))
        ),
        Fault(name="amax deleted", plant=delete("amax.safetensors")),
        Fault(name="FP8 record deleted", plant=delete(f"{_FP8}hf_quant_config.json")),
    ],
    "huggingface": [*weight_faults(), *config_faults(), *_EXPORT, *sparsity_faults()[:1]],
    "huggingface-fp8": [
        *weight_faults(),
        *config_faults(),
        *_EXPORT,
        *fp8_faults("model.safetensors"),
        *sparsity_faults()[:1],
        Fault(name="FP8 record deleted", plant=delete("hf_quant_config.json")),
    ],
    "tensorrt-llm": [*trtllm_faults(fp8=False), *_EXPORT],
    "tensorrt-llm-fp8": [*trtllm_faults(fp8=True), *_EXPORT],
    "onnx": [*onnx_faults(), *_EXPORT],
    "onnx-int4": [*int4_faults(), *_EXPORT],
    EDGE: [*edge_faults(fp8=False), *_EXPORT],
    EDGE_FP8: [*edge_faults(fp8=True), *_EXPORT],
    "onnx-standard": [*standard_faults(fp8=False), *_EXPORT],
    "onnx-standard-bf16": [*standard_faults(fp8=False), *_EXPORT],
    "onnx-standard-fp8": [*standard_faults(fp8=True), *_EXPORT],
    TEXT: perplexity_faults(),
    CHAT: chat_faults(),
    RUN: run_faults(),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `verify` said of one fault, planted `plain` or `consistent`; the first line of its error."""

    kind: str
    fault: str
    way: str
    exit_code: int
    message: str

    @property
    def found(self) -> bool:
        """Whether it was refused as what it is: not by a crash."""
        return self.exit_code == VERIFICATION_FAILED


def run_suite(made: list[Made], scratch: Path, *, only: frozenset[str] | None = None) -> Iterator[Outcome]:
    """Plant every fault of these artifacts, or the `only` ones; each kind begins with a control."""
    for artifact in made:
        yield _verify(artifact, artifact.directory, fault=CONTROL, way="plain")
        for fault in FAULTS[artifact.kind]:
            if only is not None and fault.name not in only:
                continue
            for way in ("plain",) if fault.only_plain else ("plain", "consistent"):
                yield _plant(artifact, fault, way, scratch / "copy")


def _plant(artifact: Made, fault: Fault, way: str, copy: Path) -> Outcome:
    shutil.copytree(artifact.directory, copy)
    try:
        before = _bytes_of(copy)
        fault.plant(copy)
        after = _bytes_of(copy)
        assert before != after, f"{artifact.kind}: {fault.name} changed nothing"
        if way == "consistent":
            _record_again(copy, {name for name in before | after if before.get(name) != after.get(name)})
        return _verify(artifact, copy, fault=fault.name, way=way)
    finally:
        shutil.rmtree(copy)


def _record_again(copy: Path, changed: set[str]) -> None:
    """Make the records of every changed part agree with its files."""
    for record in copy.rglob("artifact.json"):
        part = record.parent.relative_to(copy).as_posix()
        if part == "." or any(name.startswith(f"{part}/") for name in changed):
            _seal_again(record, {})
            record_again(record.parent)
    manifest = copy / MANIFEST_FILE
    if manifest.is_file():
        _seal_again(manifest, {name: sha256_of_file(copy / name) for name in changed if "/" not in name})


def _seal_again(file: Path, changed: dict[str, str]) -> None:
    """As if a record that was edited, or is of changed files, had been written so."""
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["seal"]
    record["files"] |= {name: value for name, value in changed.items() if name in record["files"]}
    file.write_text(json.dumps(sealed(record)), encoding="utf-8")


def _verify(artifact: Made, directory: Path, *, fault: str, way: str) -> Outcome:
    source = ("--source", artifact.source) if artifact.source else ()
    done = command_here("verify", directory, *source)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    message = next((line for line in lines if "Loading" not in line), "")
    message = message.replace(str(directory.parent), "")  # equal on every machine
    return Outcome(kind=artifact.kind, fault=fault, way=way, exit_code=done.returncode, message=message)


def _bytes_of(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
