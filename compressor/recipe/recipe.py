"""The recipe: every choice of a run, typed, documented and checked.

A field is declared once: its type, default, help and flag stand here, and the command line is generated
from them. `--config recipe.yaml` sets everything, flags override it, and OUT/recipe.yaml says what to run
again. Defaults follow the published settings (Minitron, arXiv 2407.14679 and 2408.11796).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError, model_validator

from compressor.choices.formats import FORMATS, default_formats, options
from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.choices.runtimes import CHECKPOINT, DEFAULT_RUNTIME, RUNTIMES, Runtime, runtime_named
from compressor.core.errors import UsageError, nearest
from compressor.recipe.compression import Calibration, Prune, Quantize, Repair
from compressor.recipe.forms import Integers, Lengths, parse_batches, parse_names, written
from compressor.recipe.masks import LearnedMasks
from compressor.recipe.option import OneOf, Section, option
from compressor.recipe.outcome import GOALS, Outcome
from compressor.recipe.search import Search
from compressor.recipe.training import (
    Correction,
    Distill,
    Domain,
    Generate,
    Sparsify,
)
from compressor.recipe.yaml_file import read_recipe_tree, refuse_unusable_values

# Sections of other modules, which are imported from here too.
__all__ = [
    "Calibration",
    "Correction",
    "Distill",
    "Domain",
    "Generate",
    "LearnedMasks",
    "Outcome",
    "Prune",
    "Quantize",
    "Recipe",
    "Repair",
    "Search",
    "Section",
    "Sparsify",
]

MAX_SEED = 1 << 32  # NumPy's generators take no larger ones

EVERY, EXPORT = "Every command", "Export and benchmark"

ExportFormat = Annotated[str, AfterValidator(OneOf(FORMATS))]
BenchPreset = Literal["quick", "published", "minitron-blog"]


class TensorRTLLM(Section):
    """How TensorRT-LLM checkpoints are cut into ranks, and what their engines are built for."""

    heading: ClassVar[str] = "TensorRT-LLM"

    tp_size: int = option(1, "Tensor parallelism: number of GPUs that every layer is split over.", ge=1)
    pp_size: int = option(1, "Pipeline parallelism: number of GPUs that the layers are divided among.", ge=1)
    require_engine: bool = option(
        default=False,
        text="Fail with exit code 4 if trtllm-build is missing; otherwise a build script takes the engine's "
        "place.",
    )
    max_batch_size: int = option(64, "Largest number of requests that an engine serves at once.", ge=1)
    max_input_len: int = option(1024, "Largest number of prompt tokens that an engine accepts.", ge=1)
    max_seq_len: int | None = option(
        None,
        "Largest number of prompt and output tokens together that an engine accepts; by default the model's "
        "context length.",
        ge=1,
    )
    max_num_tokens: int = option(8192, "Largest number of tokens that an engine computes in one step.", ge=1)
    opt_num_tokens: int | None = option(
        None,
        "Number of tokens per step that an engine is tuned for; by default TensorRT-LLM chooses it.",
        ge=1,
    )
    multiple_profiles: bool = option(default=True, text="Build engines with several optimization profiles.")
    workers: int = option(
        1, "Number of ranks of an engine that are built at the same time.", flag="--build-workers", ge=1
    )


class Export(Section):
    """What is written, and how closely it must agree with the student."""

    heading: ClassVar[str] = EXPORT

    formats: Annotated[tuple[ExportFormat, ...], written(parse_names)] | None = option(
        None,
        "Formats to export, separated by commas; by default huggingface, tensorrt-llm, onnx and onnx-int4. "
        "With --fp8, huggingface-fp8 is added and tensorrt-llm-fp8 replaces tensorrt-llm.",
        metavar="NAME,...",
    )
    tensorrt_llm: TensorRTLLM = TensorRTLLM()
    int4_min_top1: float | None = option(
        None,
        "Smallest share of positions (0 to 1) at which an int4 export must predict the student's next token; "
        "below it the exit code is 6. By default the share is only reported.",
        ge=0,
        le=1,
    )


class Evaluate(Section):
    """Perplexity on held-out text: non-overlapping sequences, no BOS token."""

    heading: ClassVar[str] = EXPORT
    prefix: ClassVar[str] = "eval"

    data: str | None = option(
        None,
        "Text to measure perplexity on; in a run by default the held-out part of the training text.",
        metavar="SOURCE",
    )
    seq_len: int = option(1024, "Tokens per evaluated sequence.", ge=8)
    size: int = option(64, "Number of evaluated sequences.", ge=1)


def _precision_of_a_runtime(name: str) -> str:
    return OneOf({own: row for row in RUNTIMES.values() for own in row.precisions})(name)


BenchPrecision = Annotated[str, AfterValidator(_precision_of_a_runtime)]


class Bench(Section):
    """The paired benchmark of student against teacher."""

    heading: ClassVar[str] = EXPORT

    runtime: Annotated[str, AfterValidator(OneOf(RUNTIMES))] | None = option(
        None,
        f"Runtime that executes the models; by default {DEFAULT_RUNTIME}, for random weights torch-eager.",
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
        "Named set of lengths and batch sizes, instead of --isl-osl and --batch-size. quick: 128/128 at "
        "batch 1 and 8; published: the lengths of TensorRT-LLM's published tables; minitron-blog: the same "
        "lengths at batch 32 and 64.",
    )
    concurrency: Integers = option(
        (1, 8, 64),
        "Numbers of concurrent requests that a serving benchmark (tensorrt-llm) measures.",
        metavar="N,...",
    )
    num_requests: int = option(
        200, "Number of requests in each run of a serving benchmark (tensorrt-llm).", ge=2
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
    precisions: Annotated[tuple[BenchPrecision, ...], written(parse_names)] = option(
        ("fp32", "int4"),
        "Precisions that a run measures; those without an export or that the runtime lacks are left out.",
        flag="--bench-precisions",
        metavar="NAME,...",
    )
    min_pairs: int = option(5, "Smallest number of pairs of measurements per comparison.", ge=5)
    max_pairs: int = option(
        40,
        "Largest number of pairs of measurements per comparison, even if the result is still noisy.",
        ge=5,
    )
    enabled: bool = option(default=True, text="Measure the speed of the exports.", flag="--bench")

    @property
    def row(self) -> Runtime:
        """The row of a run's runtime."""
        return runtime_named(self.runtime or DEFAULT_RUNTIME)

    def reads_checkpoints(self) -> bool:
        """Whether a run measures its checkpoints themselves."""
        return self.enabled and self.row.reads == CHECKPOINT

    def read_formats(self) -> dict[str, str]:
        """The export formats that a run measures, by precision; empty where it measures checkpoints."""
        row = self.row
        if not self.enabled or row.reads == CHECKPOINT:
            return {}
        formats = options()[row.reads]
        return {name: formats[name] for name in row.precisions if name in self.precisions}

    @model_validator(mode="before")
    @classmethod
    def _batches_from_text(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("batch_sizes"), str):
            return {**value, **parse_batches(value["batch_sizes"])}
        return value


class Environment(Section):
    """What every stage shares: it is about the machine and the sources, not about one stage."""

    heading: ClassVar[str] = EVERY

    seed: int = option(0, "Seed of all random numbers.", ge=0, lt=MAX_SEED)
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Device to compute on; auto: a GPU if there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Data type of stored weights and of forward passes; auto: bfloat16."
    )
    tokenizer: str | None = option(
        None,
        "Directory with the original tokenizer of a GGUF model; by default the GGUF file's own is used.",
        metavar="DIR",
    )
    trust_remote_code: bool = option(
        default=False, text="Allow running Python code that a Hugging Face repository contains."
    )


class Recipe(Environment):
    """One run of all stages."""

    model: str = option(..., "Model to compress: alias, Hugging Face id, directory or .gguf file.", flag="")
    target: str | None = option(
        None,
        "Parameters of the student (4b, 4.5B, or 60% of MODEL's) or a published shape (4b-width). A run also "
        "takes several, such as 8b,4b: each model is made from the one before it.",
        heading="Options",
        metavar="SIZE",
    )
    outcome: Outcome = Outcome()
    search: Search = Search()
    calibration: Calibration = Calibration()
    prune: Prune = Prune()
    masks: LearnedMasks = LearnedMasks()
    repair: Repair = Repair()
    distill: Distill = Distill()
    sparsify: Sparsify = Sparsify()
    quantize: Quantize = Quantize()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()
    bench: Bench = Bench()

    def export_formats(self) -> tuple[str, ...]:
        """The formats to write, defaults filled in."""
        if self.export.formats is not None:
            return self.export.formats
        return default_formats(fp8=self.quantize.fp8)

    def repair_calibration(self) -> Calibration:
        """The calibration text, and as many of its sequences as a repair uses."""
        size = min(self.repair.size, self.calibration.size)
        return self.calibration.model_copy(update={"size": size})

    def repairs_sparse(self) -> bool:
        """Whether a sparse model is repaired."""
        return self.repair.enabled and self.sparsify.pattern is not None

    def mask_tokens(self) -> int:
        """Tokens of the training that learns masks; 0 without one."""
        return self.masks.tokens if IMPORTANCE_METHODS[self.prune.importance].trains else 0

    def recovery_tokens(self) -> int:
        """Tokens of the training that follows sparsification; 0 without one."""
        own = self.distill.tokens if self.sparsify.tokens is None else self.sparsify.tokens
        return own if self.sparsify.pattern else 0


# Of several ways to say the same, the one on the command line replaces the one in the recipe.
_SIZES = ("target", "prune.shape", *(f"outcome.{goal}" for goal in GOALS))
_REPLACES: dict[str, dict[str, object]] = {
    **{name: dict.fromkeys(other for other in _SIZES if other != name) for name in _SIZES},
    "distill.data": {"distill.domains": ()},
    "distill.warmup_steps": {"distill.warmup_ratio": None},
    "distill.warmup_ratio": {"distill.warmup_steps": None},
}


def load_recipe(
    path: Path | None, overrides: Mapping[str, object], *, flags: Mapping[str, str] | None = None
) -> Recipe:
    """Read a recipe file, if one is given, and lay values over it by dotted names, such as `distill.tokens`.

    `flags` are what the fields are called on the command line, for errors about them.

    Raises:
        UsageError: no such file, no mapping, an unknown key (with the nearest), or a bad value.
    """
    tree: dict[str, object] = read_recipe_tree(path) if path is not None else {}
    if {"distill.data", "distill.domains"} <= set(overrides):
        raise UsageError(
            "the training text is given twice", where="--train-data, --domain", hint="leave one of them out"
        )
    replaced = {other: value for name in overrides for other, value in _REPLACES.get(name, {}).items()}
    for dotted, value in {**replaced, **overrides}.items():
        _set(tree, dotted, value, where=str(path))
    where = str(path) if path else "options"
    refuse_unusable_values(tree, where=where)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise _readable(error, where=where, flags=flags or {}) from error
    refuse_unusable_values(recipe.model_dump(), where=where)  # numbers that were written as text
    return recipe


def _set(tree: dict[str, object], dotted: str, value: object, *, where: str) -> None:
    *sections, leaf = dotted.split(".")
    node = tree
    for section in sections:
        inner = node.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"recipe section {section!r} is not a mapping",
                where=where,
                found=type(inner).__name__,
                hint=f"write the section as `{section}:` with indented `name: value` lines",
            )
        node = inner
    node[leaf] = value


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _readable(error: ValidationError, *, where: str, flags: Mapping[str, str]) -> UsageError:
    """The first of pydantic's complaints as one of ours."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_beside(first["loc"])
        return UsageError(
            f"unknown recipe key {field!r}",
            where=where,
            expected=", ".join(known),
            hint=nearest(str(first["loc"][-1]), known) or "use one of the expected names",
        )
    flag = next((flag for name, flag in flags.items() if f"{field}.".startswith(f"{name}.")), None)
    if first["type"] == "string_type":
        hint = "put quotes around the value"  # YAML takes 2:4 for a number, and 2026-01-01 for a date
    else:
        hint = f"change the value; --help describes {flag}" if flag else "change this value in the recipe"
    if isinstance(first["input"], dict) and first["type"] == "value_error":
        return UsageError(
            f"choices about {field!r} do not go together",
            where=where,
            expected=first["msg"].removeprefix("Value error, "),
            hint="change one of them, or leave it out",
        )
    return UsageError(
        f"{flag} cannot have this value" if flag else f"recipe value {field!r} is not usable",
        where=flag or where,
        expected=first["msg"].removeprefix("Value error, "),
        found=first["input"],
        hint=hint,
    )


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The fields of the section that an unknown key stands in, of one entry of a list too."""
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)
