"""`compress-export bench run`: models against a baseline, in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.choices.runtimes import RUNTIMES, Runtime
from compressor.cli.options import common, recipe_overrides
from compressor.cli.parsing import Count, parse_batches, parse_integers, parse_list, parse_pairs

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
@click.option(
    "--batch-limit",
    type=Count(1),
    default=None,
    help="Where the search for the largest batch ends. [1024]",
)
@click.option("--preset", type=click.Choice(PRESETS), default=None, help="A named grid instead of both.")
@click.option(
    "--runtime",
    type=click.Choice(list(RUNTIMES)),
    default=None,
    help="[onnxruntime-genai; torch-eager for random weights]",
)
@click.option(
    "--precision",
    "precisions",
    callback=parse_list,
    default=None,
    help=(
        "fp32, fp16, int4 (ONNX); fp32, bf16, fp16, fp8, bf16+2:4, fp16+2:4 (torch). "
        "[fp32; bf16 for random weights; as stored for tensorrt-llm]"
    ),
)
@click.option("--random-weights", is_flag=True, help="MODEL is ALIAS[:SHAPE]; measure its shape only.")
@click.option(
    "--processes",
    type=click.Choice(["shared", "alternating"]),
    default=None,
    help="alternating: one model in memory at a time. [shared where both fit]",
)
@click.option(
    "--concurrency",
    callback=parse_integers,
    default=None,
    help="Requests in flight: 1,8,64; a serving experiment of its own (tensorrt-llm).",
)
@click.option("--num-requests", type=Count(2), default=None, help="Of one serving run. [200]")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    help="TensorRT engine of each MODEL, in order; without it MODEL is served by PyTorch (tensorrt-llm).",
)
@click.option("-o", "--output-dir", default=None, help="Directory to write. [./bench-MODEL]")
@common
def run(models: tuple[str, ...], output_dir: str | None, **flags: Any) -> None:
    r"""Measure throughput of MODELs in pairs; the first MODEL is the baseline.

    Every model is measured against the first one in each precision, each precision against the first
    precision given, and each of the other models in each of the other precisions against the first of both.
    ONNX graphs are built and verified once, beside the output directory, and used again.

    \b
    compress-export bench teacher student --batch-size 1,8 -o speed
    compress-export bench --random-weights llama3.1-8b 4b-width 4b-depth
    """
    from compressor.cli.bench_arms import open_arms, select
    from compressor.cli.session import emit, work
    from compressor.core.errors import UsageError
    from compressor.models.load import short_name
    from compressor.recipe.recipe import load_recipe

    selection = select(
        models,
        runtime=flags["runtime"],
        precisions=flags["precisions"],
        engines=flags["engines"],
        random_weights=flags["random_weights"],
    )
    if flags["preset"] and (flags["isl_osl"] or flags["batches"]):
        raise UsageError(
            "a preset names lengths and batch sizes itself",
            where="--preset",
            hint="leave --isl-osl and --batch-size out, or --preset",
        )
    _refuse_without_effect(flags, selection.runtime)
    recipe = load_recipe(None, recipe_overrides({**flags, "model": models[0]}))
    out_dir = Path(output_dir or f"bench-{short_name(models[0]).replace(':', '-')}")
    _refuse_other_device(flags)
    with work(flags) as console:
        from bench.bench_stage import BENCH, BenchStageConfig
        from bench.design.comparisons import fair_comparisons
        from bench.report.markdown import render_markdown
        from bench.report.write import results_of_stage
        from compressor.cli.stage_command import execute_stage

        arms = open_arms(selection, recipe, out_dir, flags, console)
        config = BenchStageConfig(
            bench=recipe.bench,
            comparisons=fair_comparisons(tuple(arms.artifacts), which=recipe.bench.baselines),
            runtime=selection.runtime.name,
            shapes=arms.shapes,
        )
        others = {**arms.artifacts, **arms.engines}
        artifact = execute_stage(BENCH, config, arms.baseline, out_dir, flags, console, others=others)
        report = render_markdown(results_of_stage(artifact.details, artifact.path))
    emit(artifact.details, flags, report)


def _refuse_without_effect(flags: dict[str, Any], runtime: Runtime) -> None:
    """Refuse options of the other experiment."""
    from compressor.core.errors import UsageError

    foreign = ("batches", "batch_limit", "processes") if runtime.serves else ("concurrency", "num_requests")
    given = [
        "--batch-size" if name == "batches" else f"--{name.replace('_', '-')}"
        for name in foreign
        if flags[name]
    ]
    if given:
        kind = "requests in flight" if runtime.serves else "static batches"
        raise UsageError(
            f"{runtime.name} measures {kind}, where these options have no effect",
            where=", ".join(given),
            hint="leave them out, or choose another --runtime",
        )


def _refuse_other_device(flags: dict[str, Any]) -> None:
    """Runtimes take the GPU where there is one; another wish is refused rather than ignored."""
    from compressor.core import hardware
    from compressor.core.errors import UsageError

    own = hardware.resolve_device("auto")
    if flags["device"] not in (None, "auto", own):
        raise UsageError(
            "a benchmark runs on this machine's own device",
            where="--device",
            expected=own,
            found=flags["device"],
            hint="leave --device out; CUDA_VISIBLE_DEVICES= in front of the command hides the GPUs",
        )
