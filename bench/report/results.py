"""The schema of `results.json`, version 1.

Readers outside this project depend on it: fields may be added, and anything else is a new version.
Durations are in seconds, memory in bytes, and no field holds a path of the machine.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.core.records import Record

SCHEMA: Literal["compress-export/bench/1"] = "compress-export/bench/1"

Status = Literal["ok", "NOISY", "FAIL"]


class Quality(Record):
    """How good one model is, as the evaluate stage measured it."""

    model: str
    metric: str
    value: float
    is_better_when_lower: bool = True

    @property
    def title(self) -> str:
        """The metric, and which way is better."""
        return f"{self.metric} ({'lower' if self.is_better_when_lower else 'higher'} is better)"


class Rates(Record):
    """What the machine can do at best, measured once."""

    bandwidth_bytes_per_s: float = Field(description="reading large arrays from memory")
    matmul_ops_per_s: dict[str, float] = Field(description="dense matrix product, by precision")
    device: str


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
    device_bytes: int | None = Field(None, description="largest reservation on the GPU, where one was used")


class Absent(Record):
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
    peak_memory: PeakMemory | Absent
    has_random_weights: bool = False

    weight_bytes: int | Absent = Field(Absent(absent="not recorded"), description="on disk")
    engine_bytes: int | Absent = Field(Absent(absent="not recorded"), description="on disk")
    file_bytes: int = Field(0, description="all files of the model on disk")


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

    @property
    def relative_width(self) -> float:
        """Width of the interval as a fraction of the ratio."""
        return (self.high - self.low) / self.ratio


class ArmCell(Record):
    """What one arm did in one cell."""

    num_warmup_runs: int = Field(description="the most that any series needed")
    is_settled: bool | None = Field(
        description="whether the last two warm-up latencies agreed; null where the runtime does not tell"
    )
    exploration_latency_s: tuple[float, ...] = Field(description="the series that fixed the length")
    metrics: dict[str, Summary | Absent]


class Roofline(Record):
    """The least time a cell can take on this machine: bytes over bandwidth or operations over rate."""

    baseline_floor_s: float
    candidate_floor_s: float
    best_speedup: float = Field(description="ratio of the floors per output token")
    reached: float = Field(description="measured speed-up over the best possible one")
    baseline_share: float = Field(description="floor over the baseline's median latency")
    candidate_share: float = Field(description="floor over the candidate's median latency")


class CellResult(Record):
    """One cell of one comparison; a failed one has a reason and no numbers."""

    isl: int
    osl: int
    batch_size: int
    candidate_batch_size: int | None = Field(
        None, description="the candidate's, where each model has a batch size of its own"
    )
    is_largest: bool = Field(
        default=False, description="whether each model runs the largest batch that was found for it"
    )
    status: Status
    reason: str | None = None
    gated: bool = Field(
        default=True, description="set to false in a baseline by hand: the gate then only reports this cell"
    )
    not_gated_reason: str | None = Field(None, description="why it is not gated")
    is_confirmed: bool = Field(
        default=False, description="whether the numbers are of fresh series, whose length was fixed before"
    )
    num_series: int = Field(
        default=1,
        description="series of equal length, one after the other in the samples; where there are several, "
        "their means are what intervals are over",
    )
    order: str = Field("", description="order of the runs of each series: A baseline, B candidate")
    speedup: Interval | None = Field(None, description="output throughput, candidate over baseline")
    ratios: dict[str, Interval | Absent] = Field({})
    baseline: ArmCell | None = None
    candidate: ArmCell | None = None
    roofline: Roofline | Absent | None = None

    @property
    def label(self) -> str:
        """`128/128 x 8`, or `128/128 x 32:64` with a batch size per model."""
        return f"{self.isl}/{self.osl} x {self.batches}"

    @property
    def identity(self) -> str:
        """What the cell is in every comparison and benchmark: a largest batch is found anew in each."""
        return f"{self.isl}/{self.osl} x largest" if self.is_largest else self.label

    @property
    def batches(self) -> str:
        """`8`, or `32:64` with a batch size per model; says so of a largest batch."""
        own = "" if self.candidate_batch_size is None else f":{self.candidate_batch_size}"
        return f"{self.batch_size}{own}{' (largest)' if self.is_largest else ''}"


class ComparisonResult(Record):
    """Two arms over the grid."""

    baseline: str
    candidate: str
    cells: tuple[CellResult, ...]


class Gpu(Record):
    """One GPU as its driver describes it; `[N/A]` stands for what the driver does not tell."""

    name: str
    driver: str
    memory_mib: str
    sm_clock_mhz: str
    memory_clock_mhz: str
    power_limit_w: str
    form: str | None = Field(None, description="SXM, PCIe or NVL, from the name")
    temperature_c: str | None = None
    throttle_reasons: str | None = None
    ecc: str | None = None
    mig: str | None = None
    num_other_processes: int | None = None


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

    mode: Literal["static_batch", "concurrency"] = "static_batch"
    processes: Literal["shared", "alternating"] = "shared"
    order: Literal["ABBA"] = "ABBA"
    seed: int
    min_pairs: int
    max_pairs: int
    min_warmup_runs: int
    max_warmup_runs: int
    warmup_tolerance: float
    confidence: float
    max_relative_width: float
    num_series: int = Field(default=1, description="fresh ones, of a cell whose first series became narrow")
    is_indicative: bool = Field(
        default=False, description="whether there are too few series for a result that others may rely on"
    )
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
    quality: tuple[Quality, ...] = ()
    rates: Rates | None = None

    def arm(self, arm_id: str) -> ArmRecord:
        """The arm called `arm_id`; a KeyError when there is none."""
        for arm in self.arms:
            if arm.id == arm_id:
                return arm
        raise KeyError(arm_id)
