"""Options that several commands share, and how they become recipe sections."""

from __future__ import annotations

from typing import Any

import click

from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.cli.parsing import SEED, Command, Count, apply_options
from compressor.cli.training_options import DISTILLATION_FIELDS, TRAINING_FIELDS

OUTPUT = click.option("-o", "--output-dir", "output_dir", required=True, help="Directory to write.")


def common(function: Command) -> Command:
    """Options of every command that works on a model."""
    options = [
        click.option("--seed", type=SEED, default=None, help="Seed of everything random. [0]"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default=None, help="[auto]"),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default=None,
            help="Dtype of stored weights and forward passes. [auto: bfloat16]",
        ),
        click.option(
            "--tokenizer", default=None, help="Directory of the real tokenizer of a GGUF file. [its own]"
        ),
        click.option("--resume", is_flag=True, help="Assert that there is something to resume."),
        click.option("--overwrite", is_flag=True, help="Start anew in a directory of ours."),
        click.option(
            "--check/--no-check",
            default=True,
            help="Whether a finished run's files are compared with their sha256. [--check]",
        ),
        click.option("--trust-remote-code", is_flag=True, help="Run model code from a hub repository."),
        *_REPORTING,
    ]
    return apply_options(function, options)


def reporting(function: Command) -> Command:
    """Options of every command: what it prints."""
    return apply_options(function, _REPORTING)


def calibration(function: Command) -> Command:
    """Options of commands that calibrate."""
    options = [
        click.option("--calib-data", default=None, help="SOURCE: hub id, files, directory or glob."),
        click.option("--calib-size", type=Count(1), default=None, help="Windows, spread over it. [1024]"),
        click.option("--calib-seq-len", type=Count(8), default=None, help="Tokens each. [2048]"),
    ]
    return apply_options(function, options)


def parallelism(function: Command) -> Command:
    """Options of commands that write TensorRT-LLM checkpoints."""
    options = [
        click.option("--tp-size", type=Count(1), default=None, help="GPUs per layer. [1]"),
        click.option("--pp-size", type=Count(1), default=None, help="Pipeline stages. [1]"),
        click.option("--require-engine", is_flag=True, help="Exit 4 where no engine can be built."),
    ]
    return apply_options(function, options)


def sparsity(function: Command) -> Command:
    """Options of commands that make a model sparse."""
    options = [
        click.option("--sparsity", default=None, help="Pattern N:M along the input dimension, such as 2:4."),
        click.option(
            "--sparsity-method",
            type=click.Choice(list(SPARSITY_METHODS)),
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
        click.option("--slorb-group-size", type=Count(2), default=None, help="Channels per rank. [16]"),
        click.option(
            "--kl-weight",
            type=float,
            default=None,
            help="Of KL while recovering; cross-entropy has the rest. [0.67]",
        ),
    ]
    return apply_options(function, options)


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
    "tokenizer": "tokenizer",
    "trust_remote_code": "trust_remote_code",
    "importance": "prune.importance",
    "shape": "prune.shape",
    "calib_data": "calibration.data",
    "calib_size": "calibration.size",
    "calib_seq_len": "calibration.seq_len",
    **TRAINING_FIELDS,
    **DISTILLATION_FIELDS,
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
    "largest_batch": "bench.measure.largest_batch",
    "preset": "bench.preset",
    "processes": "bench.processes",
    "concurrency": "bench.concurrency",
    "num_requests": "bench.num_requests",
    "batch_limit": "bench.batch_limit",
}

# Only batches of one model each: no equal ones. No trackers at all.
_MAY_BE_EMPTY = ("batch_sizes", "batch_pairs", "report_to")


def recipe_overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe fields that the given flags set; flags that were not given set nothing.

    Raises:
        UsageError: for a value that cannot be parsed.
    """
    from compressor.core.errors import UsageError
    from compressor.planning.target import parse_count

    if flags.get("train_data") and flags.get("domains"):
        raise UsageError("the training text is given twice", where="--domain", found="--train-data as well")
    overrides: dict[str, Any] = {}
    flags = {**flags, **(flags.get("batches") or {})}
    for flag, field in RECIPE_FIELDS.items():
        value = flags.get(flag)
        if value is None or value is False or (value == () and flag not in _MAY_BE_EMPTY):
            continue
        if flag in ("tokens", "recover_tokens", "generate_tokens"):
            value = parse_count(value, option=f"--{flag.replace('_', '-')}")
        overrides[field] = value
    if flags.get("target") and not flags.get("shape"):
        overrides["prune.shape"] = None  # a recipe's shape would silently win
    if flags.get("shape") and not flags.get("target"):
        overrides["target"] = None
    if flags.get("train_data"):
        overrides["distill.domains"] = ()  # a recipe's domains would silently win
    if flags.get("mask_only"):
        overrides["sparsify.update_weights"] = False
    return overrides
