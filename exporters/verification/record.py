"""`verification.json`: what an export was compared with, how, and what came out.

It holds no time, host or path, so that equal exports leave equal records. The files of an export, this
one among them, are recorded in its `artifact.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from compressor.core.json_files import as_record, read_json_mapping
from compressor.core.records import Record
from compressor.runs.artifact import write_json
from exporters.verification.tolerance import LogitFigures, Tolerance, check_tolerance

VERIFICATION_FILE = "verification.json"
SCHEMA: Literal["compress-export/verification/3"] = "compress-export/verification/3"

Status = Literal["bit-equal", "passed", "failed", "reported", "not executed"]


class PromptCounts(Record):
    """What was fed: counts, and a sha256 of the token ids."""

    num_prompts: int
    num_text_positions: int
    num_random_positions: int
    sha256: str


class Verification(Record):
    """One export against its student: exact `checks` that passed, with their counts, and `notes` on them.

    `status` is `bit-equal` where every tensor and the config are the student's own, so that nothing was run;
    else whether the logits keep to the tolerance, are only reported, or could not be computed. `logits` are
    compared over all positions (`all`), and over those of text and of random tokens; a `tolerance` of None
    is reported only.
    """

    schema_id: Literal["compress-export/verification/3"] = Field(SCHEMA, alias="schema")
    format: str
    precision: str
    status: Status
    reference: Literal["the student in float32"] = "the student in float32"
    prompts: PromptCounts | None = None
    logits: dict[str, LogitFigures] = Field(default_factory=dict)
    tolerance: Tolerance | None = None
    checks: dict[str, JsonValue] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def enforce(self) -> None:
        """Refuse (VerificationError) an export beyond its tolerance."""
        if self.logits and self.tolerance is not None:
            check_tolerance(self.logits["all"], self.tolerance, where=self.format)


class SparseTactics(Record):
    """Layers of an engine that could use a sparse tactic, and that do; None where the log does not say."""

    num_eligible: int | None = None
    num_chosen: int | None = None
    engine: str


class PredictedMemory(Record):
    """Bytes per GPU: weights, and the KV cache of a full batch; activations left out."""

    weight_bytes_per_gpu: int
    full_kv_cache_bytes_per_gpu: int


class Engine(Record):
    """An engine that was built from an export, or how to build it and why it was not.

    `commands` are by the engine's directory, to be run in the `container`, or on the device where there is
    none, as `script` does; `sparsity` is what the build log says of sparse tactics.
    """

    built: bool
    commands: dict[str, str]
    container: str | None = None
    predicted_memory: PredictedMemory | None = None
    reason: str | None = None
    script: str | None = None
    tensorrt_llm: str | None = None
    sparsity: SparseTactics | None = None


class ExportRecord(Verification):
    """What an export's artifact says in its details: the verification, and the engine where there is one."""

    engine: Engine | None = None


def write_verification(directory: Path, verification: Verification) -> None:
    """Write the record beside what it is about."""
    write_json(directory / VERIFICATION_FILE, verification.to_json())


def read_verification(directory: Path) -> Verification:
    """Read a record; VerificationError when it is not one of ours."""
    file, what = directory / VERIFICATION_FILE, "the verification record"
    return as_record(Verification, read_json_mapping(file, what=what), what=what, where=file)


def details_of(verification: Verification, engine: Engine | None) -> Mapping[str, object]:
    """An export's details, without what there is none of."""
    made = {} if engine is None else {"engine": engine.model_dump(mode="json", exclude_none=True)}
    return {**verification.to_json(), **made}
