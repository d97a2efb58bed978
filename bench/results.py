"""The schema of `results.json`, version 1.

Readers outside this project depend on it: fields may be added, and anything else is a new version.
Durations are in seconds, memory in bytes, and no field holds a path of the machine.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Literal["compress-export/bench/1"] = "compress-export/bench/1"

Status = Literal["ok", "NOISY", "FAIL"]


class Record(BaseModel):
    """Base of every part: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


class NotMeasured(Record):
    """Something a reader would look for that this machine cannot measure."""

    what: str
    reason: str


class FileRecord(Record):
    """One file of a model directory."""

    sha256: str
    size_bytes: int


class PeakMemory(Record):
    """Largest resident set of a fresh process that loads one arm and runs one cell once."""

    isl: int
    osl: int
    batch_size: int
    peak_bytes: int
    baseline_bytes: int = Field(description="the same process after its imports, before loading")


class AbsentRecord(Record):
    """Stands where a measurement would be, and says why there is none."""

    absent: str


class ArmRecord(Record):
    """One model, in one precision, in one runtime."""

    id: str
    model: str
    precision: str
    runtime: str
    num_parameters: int
    files: dict[str, FileRecord]
    peak_memory: PeakMemory | AbsentRecord


class Summary(Record):
    """One metric of one arm in one cell; `samples` are in order of measurement."""

    median: float
    cv: float = Field(description="standard deviation (n - 1) over mean")
    minimum: float
    maximum: float
    samples: tuple[float, ...]


class Interval(Record):
    """A paired ratio (above 1: the candidate is better) and its 95 % log-ratio t-interval."""

    ratio: float
    low: float
    high: float
    num_pairs: int


class ArmCell(Record):
    """What one arm did in one cell."""

    num_warmup_runs: int
    is_settled: bool = Field(description="whether the last two warm-up latencies agreed")
    exploration_latency_s: tuple[float, ...] = Field(description="the series that fixed the length")
    metrics: dict[str, Summary | AbsentRecord]


class CellResult(Record):
    """One cell of one comparison; a failed one has a reason and no numbers."""

    isl: int
    osl: int
    batch_size: int
    status: Status
    reason: str | None = None
    is_confirmed: bool = Field(
        default=False, description="whether the numbers are a fresh series of fixed length"
    )
    order: str = Field("", description="order of the reported runs: A baseline, B candidate")
    speedup: Interval | None = Field(None, description="output throughput, candidate over baseline")
    ratios: dict[str, Interval | AbsentRecord] = {}
    baseline: ArmCell | None = None
    candidate: ArmCell | None = None


class ComparisonResult(Record):
    """Two arms over the grid."""

    baseline: str
    candidate: str
    cells: tuple[CellResult, ...]


class Gpu(Record):
    """One GPU as `nvidia-smi` describes it."""

    name: str
    driver: str
    memory_mib: str
    sm_clock_mhz: str
    memory_clock_mhz: str
    power_limit_w: str


class Snapshot(Record):
    """What changes while a benchmark runs."""

    load_average: tuple[float, float, float]
    cpu_clock_mhz: float | None
    gpus: tuple[Gpu, ...]


class Environment(Record):
    """The machine and the software; fields the machine does not tell are null."""

    cpu: str
    num_logical_cores: int
    num_usable_cores: int
    memory_bytes: int
    os: str
    cpu_governor: str | None
    container_digest: str | None
    git_commit: str | None
    versions: dict[str, str]
    before: Snapshot
    after: Snapshot


class Protocol(Record):
    """How the numbers were taken."""

    mode: Literal["static_batch"] = "static_batch"
    order: Literal["ABBA"] = "ABBA"
    seed: int
    min_pairs: int
    max_pairs: int
    min_warmup_runs: int
    max_warmup_runs: int
    warmup_tolerance: float
    confidence: float
    max_relative_width: float
    metrics: dict[str, str] = Field(description="definition of every metric")


class Results(Record):
    """The whole of `results.json`."""

    schema_id: Literal["compress-export/bench/1"] = Field(SCHEMA, alias="schema")
    created: str
    protocol: Protocol
    environment: Environment
    arms: tuple[ArmRecord, ...]
    comparisons: tuple[ComparisonResult, ...]
    not_measured: tuple[NotMeasured, ...] = ()

    def arm(self, arm_id: str) -> ArmRecord:
        """The arm called `arm_id`.

        Raises:
            KeyError: when there is none.
        """
        for arm in self.arms:
            if arm.id == arm_id:
                return arm
        raise KeyError(arm_id)
