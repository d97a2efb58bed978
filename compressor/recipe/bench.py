"""The recipe's section about the benchmark: what executes the models, and what is measured of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, model_validator

from compressor.choices.grids import PRESETS
from compressor.choices.runtimes import (
    AUTO,
    NONE,
    ON_EVERY_MACHINE,
    RUNTIME_CHOICES,
    RUNTIMES,
    Device,
    Runtime,
    runtime_named,
)
from compressor.core.errors import UsageError
from compressor.recipe.forms import Lengths, parse_batches, parse_names, written
from compressor.recipe.layers import grid_of
from compressor.recipe.option import OneOf, Section, option

EXPORT = "Export and benchmark"
ON_CPU = ("fp32", "int4")  # what is measured without a GPU where a recipe names nothing


def _precision_of_a_runtime(name: str) -> str:
    return OneOf({own: row for row in RUNTIMES.values() for own in row.precisions})(name)


BenchPrecision = Annotated[str, AfterValidator(_precision_of_a_runtime)]
BenchPreset = Annotated[str, AfterValidator(OneOf(PRESETS))]


class Bench(Section):
    """The paired benchmark of student against teacher."""

    heading: ClassVar[str] = EXPORT

    runtime: Annotated[str, AfterValidator(OneOf(RUNTIME_CHOICES))] = option(
        AUTO, "Runtime that executes the models in the benchmark."
    )
    device: Device | None = option(
        None, "Device that executes the models, as it was found when auto was resolved.", flag=""
    )
    engines: bool | None = option(
        None,
        "Whether TensorRT engines are built and measured, of teacher and student; by default where "
        "their builder is found.",
        flag="",
    )
    isl_osl: Lengths = option(
        ((128, 128), (1000, 1000)), "Pairs of input and output length in tokens.", metavar="ISL/OSL,..."
    )
    batch_sizes: tuple[int, ...] = option(
        (1, 8),
        "Batch sizes. 32:64 means 32 for the baseline and 64 for the candidate; max means the largest that "
        "each model can run.",
        flag="--batch-size",
        metavar="N,N:M,max",
    )
    batch_pairs: tuple[tuple[int, int], ...] = option(
        (), "Batch sizes of the baseline and of the candidate where they differ.", flag=""
    )
    largest_batch: bool = option(
        default=False, text="Also measure each model at the largest batch size that it can run.", flag=""
    )
    batch_limit: int = option(1024, "Upper bound of the search for the largest batch size.", ge=1)
    preset: BenchPreset | None = option(
        None,
        "Named set of lengths and batch sizes, instead of --isl-osl and --batch-size. In a serving benchmark "
        "batch sizes are numbers of concurrent requests.",
    )
    concurrency: tuple[int, ...] = option(
        (1, 8, 64),
        "Numbers of concurrent requests that a serving benchmark (tensorrt-llm, vllm, tensorrt-edge-llm) "
        "measures. 32:64 means 32 for the baseline and 64 for the candidate.",
        metavar="N,N:M,...",
    )
    concurrency_pairs: tuple[tuple[int, int], ...] = option(
        (), "Numbers of concurrent requests of the baseline and of the candidate where they differ.", flag=""
    )
    num_requests: int | None = option(
        None,
        "Number of requests in each run of a serving benchmark (tensorrt-llm, vllm, tensorrt-edge-llm); by "
        "default three for each concurrent request, and at least 8.",
        ge=2,
    )
    timeout_s: int = option(
        3600,
        "Longest time in seconds that one run of a serving benchmark may take, its start included; beyond it "
        "the server is stopped and the cell fails.",
        flag="--bench-timeout",
        course=True,
        ge=1,
    )
    processes: Literal["shared", "alternating"] = option(
        "shared",
        "shared: all models are loaded in one process; alternating: each has a process of its own, and only "
        "one model is in memory at a time.",
    )
    baselines: Literal["same-precision", "all"] = option(
        "all",
        "What is compared. same-precision: models in the same precision; all: also each model's other "
        "precisions with its first, and everything with the first model in its first precision.",
    )
    precisions: Annotated[tuple[BenchPrecision, ...], written(parse_names)] | None = option(
        None,
        "Precisions that a run measures; those without an export or that the runtime lacks are left out. By "
        "default fp32 and int4 on a CPU; on a GPU 16 bits, with --fp8 also fp8, and with --sparsity 2:4.",
        flag="--bench-precisions",
        metavar="NAME,...",
    )
    min_pairs: int = option(5, "Smallest number of pairs of measurements per comparison.", ge=5)
    max_pairs: int = option(
        40,
        "Largest number of pairs of measurements per comparison, even if the result is still noisy.",
        ge=5,
    )

    num_series: int = option(
        6,
        "Series of static batches that a cell's numbers come from, each on freshly loaded models. Fewer than "
        "6 are quicker and only indicative: reports say so, and no gate takes them.",
        flag="--bench-series",
        ge=3,
    )

    def requests_per_run(self, concurrency: int) -> int:
        """How many requests a run of a serving benchmark answers; no fewer than are in flight."""
        return max(concurrency, self.num_requests or max(8, 3 * concurrency))

    @property
    def is_measured(self) -> bool:
        """Whether there is a benchmark at all."""
        return self.runtime != NONE

    @property
    def row(self) -> Runtime:
        """The row of the runtime.

        As long as nobody looked for what a machine has (`compressor.planning.runtime_choice`), auto stands
        for the one that every machine has.
        """
        return runtime_named(ON_EVERY_MACHINE if self.runtime == AUTO else self.runtime)

    @property
    def measures_gpu(self) -> bool:
        """Whether it is a GPU that is measured."""
        return self.is_measured and (self.device or self.row.devices[-1]) == "cuda"

    @property
    def measures_engines(self) -> bool:
        """Whether TensorRT engines are measured instead of checkpoints."""
        return self.is_measured and bool(self.engines) and self.row.engines is not None

    def require_series(self, runtime: Runtime) -> None:
        """Refuse a number of series for a runtime whose runs have as many as it says itself.

        Raises:
            UsageError: naming the field and the option.
        """
        if runtime.serves and self.num_series != type(self).model_fields["num_series"].default:
            raise UsageError(
                f"{runtime.name} measures requests in flight, where the number of series has no effect",
                where="bench.num_series (--bench-series)",
                found=self.num_series,
                hint="leave it out, or choose another --runtime",
            )

    @model_validator(mode="after")
    def _some_pairs(self) -> Bench:
        if self.min_pairs > self.max_pairs:
            raise ValueError(f"min_pairs {self.min_pairs} is more than max_pairs {self.max_pairs}")
        return self

    @model_validator(mode="after")
    def _one_grid(self) -> Bench:
        """Beside a preset, a grid may stand as the preset has it; any other would have no effect."""
        for dotted, value in (grid_of(self.preset) if self.preset else {}).items():
            name = dotted.rpartition(".")[2]
            if getattr(self, name) not in (value, type(self).model_fields[name].default):
                raise ValueError(f"preset {self.preset} sets {name}; leave one of them out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _numbers_from_text(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        parsed: dict[str, object] = {}
        if isinstance(value.get("batch_sizes"), str):
            parsed |= parse_batches(value["batch_sizes"])
        if isinstance(value.get("concurrency"), str):
            sizes = parse_batches(value["concurrency"])
            if sizes["largest_batch"]:
                raise ValueError("'max' is not a number of concurrent requests")
            parsed |= {"concurrency": sizes["batch_sizes"], "concurrency_pairs": sizes["batch_pairs"]}
        return {**value, **parsed}
