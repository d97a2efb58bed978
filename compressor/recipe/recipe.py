"""The recipe: every choice of a run, typed, documented and checked.

A field is declared once: its type, default, help and flag stand here, and the command line is generated
from them. `--config recipe.yaml` sets everything, flags override it, and OUT/recipe.yaml says what to run
again. Defaults follow the published settings (Minitron, arXiv 2407.14679 and 2408.11796).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError

from compressor.choices.formats import FORMATS, default_formats, options
from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.choices.runtimes import CHECKPOINT
from compressor.core.errors import UsageError, nearest
from compressor.recipe.bench import EXPORT, ON_CPU, Bench
from compressor.recipe.compression import Calibration, Prune, Quantize, Repair
from compressor.recipe.engines import EdgeLLM, TensorRTLLM
from compressor.recipe.evaluation import Evaluate
from compressor.recipe.forms import parse_names, written
from compressor.recipe.gates import Gates
from compressor.recipe.interleave import Interleave
from compressor.recipe.layers import Layer, lay_over
from compressor.recipe.masks import LearnedMasks
from compressor.recipe.option import OneOf, Section, option
from compressor.recipe.outcome import Outcome
from compressor.recipe.search import Search
from compressor.recipe.sparsify import Sparsify
from compressor.recipe.training import Correction, Distill, Domain, Generate
from compressor.recipe.yaml_file import read_recipe_tree, refuse_unusable_values

# Sections of other modules, which are imported from here too.
__all__ = [
    "Bench",
    "Calibration",
    "Correction",
    "Distill",
    "Domain",
    "EdgeLLM",
    "Evaluate",
    "Gates",
    "Generate",
    "Interleave",
    "LearnedMasks",
    "Outcome",
    "Prune",
    "Quantize",
    "Recipe",
    "Repair",
    "Search",
    "Section",
    "Sparsify",
    "TensorRTLLM",
]

MAX_SEED = 1 << 32  # NumPy's generators take no larger ones

EVERY = "Every command"

ExportFormat = Annotated[str, AfterValidator(OneOf(FORMATS))]


class Export(Section):
    """What is written, and how closely it must agree with the student."""

    heading: ClassVar[str] = EXPORT

    formats: Annotated[tuple[ExportFormat, ...], written(parse_names)] | None = option(
        None,
        "Formats to export, separated by commas; by default huggingface, tensorrt-llm, onnx and onnx-int4. "
        "With --fp8, huggingface-fp8 is added and tensorrt-llm-fp8 replaces tensorrt-llm. Where a GPU is "
        "measured, onnx is left out; where engines are, tensorrt-llm stays beside tensorrt-llm-fp8.",
        metavar="NAME,...",
    )
    tensorrt_llm: TensorRTLLM = TensorRTLLM()
    edge_llm: EdgeLLM = EdgeLLM()
    int4_min_top1: float | None = option(
        None,
        "Smallest share of positions (0 to 1) at which an int4 export must predict the student's next token; "
        "below it the exit code is 6. By default the share is only reported.",
        ge=0,
        le=1,
    )


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

    @property
    def stored_precision(self) -> str:
        """How weights are stored, before any quantization."""
        return {"float32": "fp32", "float16": "fp16"}.get(self.dtype, "bf16")


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
    preflight: Literal["auto", "on", "off"] = option(
        "auto",
        "Whether every stage and exporter is first tried on a slice of two layers of the model, to fail in "
        "minutes. auto: if training is estimated to take an hour or more on this machine.",
        heading="Options",
        course=True,
    )
    outcome: Outcome = Outcome()
    search: Search = Search()
    interleave: Interleave = Interleave()
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
    gates: Gates = Gates()

    def export_formats(self) -> tuple[str, ...]:
        """The formats to write, defaults filled in."""
        if self.export.formats is not None:
            return self.export.formats
        bench = self.bench
        return default_formats(
            fp8=self.quantize.fp8,
            on_gpu=bench.measures_gpu,
            engines=bench.row.engines if bench.measures_engines else None,
        )

    def bench_precisions(self) -> tuple[str, ...]:
        """What the benchmark measures of a runtime that takes any precision, in the order of its row."""
        bench, asked = self.bench, self.bench.precisions
        if asked is None and bench.measures_gpu:
            own, sparse = self.stored_precision, self.sparsify.pattern
            asked = (own, *(["fp8"] if self.quantize.fp8 else []), *([f"{own}+{sparse}"] if sparse else []))
        elif asked is None:
            asked = ON_CPU
        return tuple(name for name in bench.row.precisions if name in asked)

    def measured_formats(self) -> dict[str, str]:
        """The export formats that the benchmark measures, by precision, of teacher and student alike.

        None where it reads 16-bit checkpoints; a server also takes FP8 ones.
        """
        bench, written = self.bench, self.export_formats()
        if not bench.is_measured or (bench.row.reads == CHECKPOINT and not bench.row.serves):
            return {}
        if bench.row.serves:
            engines = bench.row.engines if bench.measures_engines else None
            formats = options()[engines] if engines else {"fp8": options()[CHECKPOINT]["fp8"]}
            asked = tuple(formats) if bench.precisions is None else bench.precisions
        else:
            formats, asked = options()[bench.row.reads], self.bench_precisions()
        return {own: formats[own] for own in formats if own in asked and formats[own] in written}

    def executed_formats(self) -> tuple[str, ...]:
        """The export formats whose graphs are evaluated as they compute; none unless `evaluate.exports`."""
        written = self.export_formats() if self.evaluate.exports else ()
        return tuple(name for name in written if FORMATS[name].executor is not None)

    def repair_calibration(self) -> Calibration:
        """The calibration text, and as many of its sequences as a repair uses."""
        size = min(self.repair.size, self.calibration.size)
        return self.calibration.model_copy(update={"size": size})

    def repairs_sparse(self) -> bool:
        """Whether a sparse model is repaired."""
        return self.repair.enabled and self.sparsify.pattern is not None

    def repairs_fp8(self) -> bool:
        """Whether a quantised model is repaired."""
        return self.repair.enabled and self.repair.fp8 and self.quantize.fp8

    def mask_tokens(self) -> int:
        """Tokens of the training that learns masks; 0 without one."""
        return self.masks.tokens if IMPORTANCE_METHODS[self.prune.importance].trains else 0

    def recovery_tokens(self) -> int:
        """Tokens of the training that follows sparsification; 0 without one."""
        own = self.distill.tokens if self.sparsify.tokens is None else self.sparsify.tokens
        return own if self.sparsify.pattern else 0


def load_recipe(
    path: Path | None,
    overrides: Mapping[str, object],
    *,
    flags: Mapping[str, str] | None = None,
    environment: Layer | None = None,
) -> Recipe:
    """Read a recipe file, if one is given, and lay values over it by dotted names, such as `distill.tokens`.

    `flags` are what the fields are called on the command line, for errors about them. Values of an
    `environment` stand between the file and the others.

    Raises:
        UsageError: no such file, no mapping, an unknown key (with the nearest), or a bad value.
    """
    tree: dict[str, object] = read_recipe_tree(path) if path is not None else {}
    options = Layer(kind="option", values=overrides, names=flags or {})
    layers = [*([environment] if environment else []), options]
    lay_over(tree, layers, where=str(path))
    where = str(path) if path else "options"
    names = {name: called for layer in layers for name, called in layer.names.items() if name in layer.values}
    refuse_unusable_values(tree, where=where)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise _readable(error, where=where, flags=names) from error
    refuse_unusable_values(recipe.model_dump(), where=where)  # numbers that were written as text
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _readable(error: ValidationError, *, where: str, flags: Mapping[str, str]) -> UsageError:
    """The first of pydantic's complaints as one of ours."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known, last = _keys_beside(first["loc"]), str(first["loc"][-1])
        elsewhere = [name for name in _names_below(Recipe) if name.rpartition(".")[2] == last]
        meant = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(last, known)
        return UsageError(
            f"unknown recipe key {field!r}",
            where=where,
            expected=", ".join(known),
            hint=meant or "use one of the expected names; --print-config shows all of them",
        )
    flag = next((flag for name, flag in flags.items() if f"{field}.".startswith(f"{name}.")), None)
    if first["type"] == "string_type" and not isinstance(first["input"], (list, dict)):
        hint = "put quotes around the value"  # YAML takes 2:4 for a number, and 2026-01-01 for a date
    elif first["type"] == "model_type":
        return UsageError(
            f"{field!r} is a section of the recipe, and has no value of its own",
            where=flag or where,
            expected=f"one of its keys below it: {', '.join(_keys_beside((*first['loc'], '')))}",
            found=first["input"],
            hint=f"write {field}: on one line, and a key with its value on the next, indented",
        )
    else:
        where_described = f"; --help describes {flag}" if flag and flag.startswith("-") else ""
        hint = f"change the value{where_described}" if flag else "change this value in the recipe"
    if isinstance(first["input"], dict) and first["type"] == "value_error":
        return UsageError(
            f"choices about {field!r} do not go together",
            where=where,
            found=first["msg"].removeprefix("Value error, "),
            hint="change one of them, or leave it out",
        )
    return UsageError(
        f"{flag} cannot have this value" if flag else f"recipe value {field!r} is not usable",
        where=flag or where,
        expected=first["msg"].removeprefix("Value error, "),
        found=first["input"],
        hint=hint,
    )


def _names_below(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields below a section of the recipe."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names_below(field.annotation, f"{prefix}{name}.")
        elif prefix:
            yield f"{prefix}{name}"


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
