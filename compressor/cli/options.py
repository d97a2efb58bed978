"""Options that several commands share, and how they become recipe sections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

OUTPUT = click.option("-o", "--output-dir", "output_dir", required=True, help="Directory to write.")


def common(function: Command) -> Command:
    """Options of every command that works on a model."""
    options = [
        click.option("--seed", type=click.IntRange(0), default=None, help="Seed of everything random. [0]"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default=None, help="[auto]"),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default=None,
            help="Dtype of stored weights and forward passes. [auto: bfloat16]",
        ),
        click.option("--resume", is_flag=True, help="Assert that there is something to resume."),
        click.option("--overwrite", is_flag=True, help="Start anew in a directory of ours."),
        click.option("--trust-remote-code", is_flag=True, help="Run model code from a hub repository."),
        *_REPORTING,
    ]
    return _apply(function, options)


def reporting(function: Command) -> Command:
    """Options of every command: what it prints."""
    return _apply(function, _REPORTING)


def calibration(function: Command) -> Command:
    """Options of commands that calibrate."""
    options = [
        click.option("--calib-data", default=None, help="SOURCE: data set id, .txt, .jsonl or .parquet."),
        click.option("--calib-size", type=click.IntRange(1), default=None, help="Windows. [1024]"),
        click.option("--calib-seq-len", type=click.IntRange(8), default=None, help="Tokens each. [2048]"),
    ]
    return _apply(function, options)


def training(function: Command) -> Command:
    """Options of commands that distill."""
    options = [
        click.option("--train-data", default=None, help="SOURCE of the training text."),
        click.option("--tokens", default=None, help="Token budget such as 100k; 0 only prunes. [1.8b]"),
        click.option("--context-length", type=click.IntRange(8), default=None, help="Tokens per window."),
        click.option("--train-batch-size", type=click.IntRange(1), default=None, help="Windows per step."),
        click.option("--learning-rate", type=float, default=None, help="Peak. [1e-4]"),
        click.option("--warmup-steps", type=click.IntRange(0), default=None),
        click.option("--min-learning-rate-ratio", type=float, default=None, help="Cosine floor. [0.1]"),
        click.option("--temperature", type=float, default=None, help="Of the softmax. [1.0]"),
    ]
    return _apply(function, options)


def parallelism(function: Command) -> Command:
    """Options of commands that write TensorRT-LLM checkpoints."""
    options = [
        click.option("--tp-size", type=click.IntRange(1), default=None, help="GPUs per layer. [1]"),
        click.option("--pp-size", type=click.IntRange(1), default=None, help="Pipeline stages. [1]"),
        click.option("--require-engine", is_flag=True, help="Exit 4 where no engine can be built."),
    ]
    return _apply(function, options)


def sparsity(function: Command) -> Command:
    """Options of commands that make a model sparse."""
    options = [
        click.option("--sparsity", default=None, help="Pattern N:M along the input dimension, such as 2:4."),
        click.option(
            "--sparsity-method",
            type=click.Choice(["magnitude", "wanda", "ria", "sparsegpt", "ast"]),
            default=None,
            help="ast selects the mask again while it trains. [sparsegpt]",
        ),
        click.option("--skip", multiple=True, help="Shell pattern of tensors to leave dense; repeatable."),
        click.option("--raise-dampening", is_flag=True, default=None, help="Where SparseGPT needs it."),
        click.option("--mask-only", is_flag=True, help="SparseGPT's mask without its weight update."),
        click.option(
            "--slorb",
            type=click.Choice(["off", "fixed", "trained"]),
            default=None,
            help="Low-rank branch beside the sparse weights, as a PEFT adapter. [off]",
        ),
        click.option(
            "--slorb-group-size", type=click.IntRange(2), default=None, help="Channels per rank. [16]"
        ),
        click.option("--kl-weight", type=float, default=None, help="Of KL against cross-entropy. [0.67]"),
    ]
    return _apply(function, options)


_REPORTING = [
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors on stderr."),
    click.option("-v", "--verbose", is_flag=True, help="More on stderr."),
    click.option("--debug", is_flag=True, help="Tracebacks."),
]

# Flag of the command line -> field of the recipe.
RECIPE_FIELDS = {
    "model": "model",
    "target": "target",
    "seed": "seed",
    "device": "device",
    "dtype": "dtype",
    "trust_remote_code": "trust_remote_code",
    "importance": "prune.importance",
    "shape": "prune.shape",
    "calib_data": "calibration.data",
    "calib_size": "calibration.size",
    "calib_seq_len": "calibration.seq_len",
    "train_data": "distill.data",
    "tokens": "distill.tokens",
    "context_length": "distill.context_length",
    "train_batch_size": "distill.batch_size",
    "learning_rate": "distill.learning_rate",
    "warmup_steps": "distill.warmup_steps",
    "min_learning_rate_ratio": "distill.min_learning_rate_ratio",
    "temperature": "distill.temperature",
    "sparsity": "sparsify.pattern",
    "sparsity_method": "sparsify.method",
    "skip": "sparsify.skip",
    "raise_dampening": "sparsify.raise_dampening",
    "slorb": "sparsify.slorb",
    "slorb_group_size": "sparsify.slorb_group",
    "kl_weight": "sparsify.kl_weight",
    "recover_tokens": "sparsify.tokens",
    "recover_temperature": "sparsify.temperature",
    "fp8": "quantize.fp8",
    "fp8_kv_cache": "quantize.fp8_kv_cache",
    "formats": "export.formats",
    "int4_min_top1": "export.int4_min_top1",
    "tp_size": "export.tensorrt_llm.tp_size",
    "pp_size": "export.tensorrt_llm.pp_size",
    "require_engine": "export.tensorrt_llm.require_engine",
    "eval_data": "evaluate.data",
    "isl_osl": "bench.isl_osl",
    "batch_sizes": "bench.batch_sizes",
    "batch_pairs": "bench.batch_pairs",
    "largest_batch": "bench.largest_batch",
    "preset": "bench.preset",
    "processes": "bench.processes",
    "concurrency": "bench.concurrency",
    "num_requests": "bench.num_requests",
}

# Only batches of one model each: no equal ones.
_MAY_BE_EMPTY = ("batch_sizes", "batch_pairs")


def recipe_overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe fields that the given flags set; flags that were not given set nothing.

    Raises:
        UsageError: for a value that cannot be parsed.
    """
    from compressor.pruning.target import parse_count

    overrides: dict[str, Any] = {}
    flags = {**flags, **(flags.get("batches") or {})}
    for flag, field in RECIPE_FIELDS.items():
        value = flags.get(flag)
        if value is None or value is False or (value == () and flag not in _MAY_BE_EMPTY):
            continue
        if flag in ("tokens", "recover_tokens"):
            value = parse_count(value, option=f"--{flag.replace('_', '-')}")
        overrides[field] = value
    if flags.get("mask_only"):
        overrides["sparsify.update_weights"] = False
    return overrides


def parse_shape(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`hidden_size=432,num_hidden_layers=30` as a mapping."""
    if value is None:
        return None
    shape: dict[str, int] = {}
    for part in value.split(","):
        name, _, size = part.partition("=")
        if not size.strip().isdigit():
            raise click.BadParameter(f"{part!r} is not NAME=NUMBER")
        shape[name.strip()] = int(size)
    return shape


def parse_pairs(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`128/128,1000/1000` as pairs of input and output length."""
    if value is None:
        return None
    pairs = []
    for part in value.split(","):
        isl, _, osl = part.partition("/")
        if not (isl.strip().isdigit() and osl.strip().isdigit() and int(isl) and int(osl)):
            raise click.BadParameter(f"{part!r} is not ISL/OSL, two positive lengths")
        pairs.append((int(isl), int(osl)))
    return tuple(pairs)


def parse_list(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`a,b` as a tuple."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def parse_integers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`1,8` as a tuple of positive integers."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of positive numbers")
    return tuple(int(part) for part in parts)


def parse_batches(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`1,8,32:64,max` as the recipe's fields: equal batches, one per model, each model's largest."""
    if value is None:
        return None
    sizes: list[int] = []
    pairs: list[tuple[int, int]] = []
    parts = [part.strip() for part in value.split(",")]
    for part in parts:
        numbers = part.split(":")
        if part == "max":
            continue
        if len(numbers) > len(("baseline", "candidate")) or not all(
            number.isdigit() and int(number) for number in numbers
        ):
            raise click.BadParameter(f"{part!r} is no batch size: 8, 32:64 (baseline:candidate) or max")
        if len(numbers) == 1:
            sizes.append(int(part))
        else:
            pairs.append((int(numbers[0]), int(numbers[1])))
    return {"batch_sizes": tuple(sizes), "batch_pairs": tuple(pairs), "largest_batch": "max" in parts}


def _apply(function: Command, options: list[Any]) -> Command:
    for option in reversed(options):
        function = option(function)
    return function
