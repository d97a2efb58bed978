"""`compress-export bench run`: models against a baseline, in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common, recipe_overrides
from compressor.cli.parsing import parse_batches, parse_integers, parse_list, parse_pairs

RUNTIMES = ("onnxruntime-genai", "torch-eager", "tensorrt-llm")
PRESETS = ("quick", "published", "minitron-blog")


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--isl-osl", callback=parse_pairs, default=None, help="Lengths: 128/128,1000/1000")
@click.option(
    "--batch-size",
    "batches",
    callback=parse_batches,
    default=None,
    help="Batch sizes: 1,8; 32:64 is one per model (baseline:candidate), max the largest each can run.",
)
@click.option("--preset", type=click.Choice(PRESETS), default=None, help="A named grid instead.")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="onnxruntime-genai", show_default=True)
@click.option(
    "--precision",
    "precisions",
    callback=parse_list,
    default="fp32",
    show_default=True,
    help="fp32, fp16, int4 (ONNX); fp32, bf16, fp16, fp8, each also as bf16+2:4 (torch).",
)
@click.option("--random-weights", is_flag=True, help="MODEL is ALIAS[:SHAPE]; measure its shape only.")
@click.option(
    "--processes",
    type=click.Choice(["shared", "alternating"]),
    default=None,
    help="alternating: one model in memory at a time. [shared]",
)
@click.option(
    "--concurrency",
    callback=parse_integers,
    default=None,
    help="Requests in flight: 1,8,64; a serving experiment of its own (tensorrt-llm).",
)
@click.option("--num-requests", type=click.IntRange(2), default=None, help="Of one serving run. [200]")
@OUTPUT
@common
def run(models: tuple[str, ...], output_dir: str, **flags: Any) -> None:
    """Measure throughput of MODELs in pairs; the first MODEL is the baseline.

    Every model is measured against the first in each precision, each precision against the first
    precision given, and the ends of that road against each other. ONNX graphs are built and verified
    once, beside the output directory, and used again.
    """
    from compressor.cli.bench_arms import open_arms
    from compressor.cli.session import emit, work
    from compressor.errors import UsageError
    from compressor.recipe import load_recipe

    if len(models) == 1 and len(flags["precisions"]) == 1:
        raise UsageError("a benchmark compares a baseline with at least one other model or precision")
    recipe = load_recipe(None, recipe_overrides({**flags, "model": models[0]}))
    out_dir = Path(output_dir)
    with work(flags) as console:
        from bench.comparisons import fair_comparisons
        from bench.report.markdown import render_markdown
        from bench.results import Results
        from bench.stage import BENCH, BenchStageConfig
        from compressor.cli.stage_command import execute_stage

        source, arms, shapes = open_arms(models, recipe, out_dir, flags, console)
        config = BenchStageConfig(
            bench=recipe.bench,
            comparisons=fair_comparisons(tuple(arms), which=recipe.bench.baselines),
            runtime=flags["runtime"],
            shapes=shapes,
        )
        artifact = execute_stage(BENCH, config, source, out_dir, flags, console, others=arms)
        report = render_markdown(Results.model_validate(artifact.details))
    emit(artifact.details, flags, report)
