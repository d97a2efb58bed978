"""`compress-export run`: the whole road."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import calibration, common, parallelism, recipe_overrides, sparsity
from compressor.cli.parsing import parse_batches, parse_list, parse_pairs, parse_shape
from compressor.cli.sections import SectionedCommand
from compressor.cli.training_options import distillation, training


@click.command(cls=SectionedCommand)
@click.argument("model", required=False)
@click.option(
    "--target", default=None, help="Size (4b, 4.5B, 60%) or published shape (4b-width); 8b,4b for a family."
)
@click.option("--shape", callback=parse_shape, default=None, help="Instead of a target: NAME=NUMBER,...")
@click.option("--fp8", is_flag=True, default=None, help="FP8 weights and activations.")
@click.option("--fp8-kv-cache", is_flag=True, default=None, help="FP8 keys and values as well.")
@click.option("-o", "--output-dir", default=None, help="Run directory. [./MODEL-TARGET[-fp8]]")
@click.option("--config", type=click.Path(), default=None, help="Recipe in YAML; flags override it.")
@click.option("--importance", type=click.Choice(["activation", "weight-magnitude", "random"]), default=None)
@click.option("--formats", callback=parse_list, default=None, help="huggingface,huggingface-fp8,onnx,...")
@click.option("--int4-min-top1", type=float, default=None, help="Gate on int4's top-1 agreement.")
@click.option("--eval-data", default=None, help="SOURCE. [held-out part of the training text]")
@click.option("--isl-osl", callback=parse_pairs, default=None, help="Benchmark lengths: 128/128,1000/1000")
@click.option(
    "--batch-size", "batches", callback=parse_batches, default=None, help="Benchmark batch sizes: 1,8"
)
@click.option("--restart-from", default=None, help="Discard this stage and all later ones first.")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@parallelism
@click.option("--recover-tokens", default=None, help="Budget after sparsifying. [as --tokens]")
@sparsity
@calibration
@training
@distillation
@common
def run(**flags: Any) -> None:
    """Prune, distill, sparsify, quantize, export, verify and benchmark MODEL; MODEL alone means this.

    \b
    MODEL   alias, Hugging Face id, directory or .gguf file
    compress-export llama3.1-8b --target 4b --fp8
    compress-export ./my-model --target 60% --train-data corpus.jsonl --tokens 100m -o out
    """
    from compressor.cli.render import family_text, summary_text
    from compressor.cli.session import default_output, emit, work
    from compressor.cli.show_plan import planned
    from compressor.core.errors import UsageError
    from compressor.models.load import plan_dims, resolve_source, short_name
    from compressor.pipeline.family import FamilyPlan, run_family
    from compressor.recipe.recipe import load_recipe

    config = flags["config"]
    if flags["model"] is None and config is None:
        raise UsageError("a run needs a MODEL, or a recipe with one", hint="compress-export --help")
    recipe = load_recipe(Path(config) if config else None, recipe_overrides(flags))
    default = default_output(short_name(recipe.model), recipe.target, fp8=recipe.quantize.fp8)
    out_dir = Path(flags["output_dir"] or default)
    plan, text = planned(recipe, plan_dims(recipe.model), out_dir=out_dir)
    if flags["dry_run"]:
        emit(plan.to_json(), flags, text)
        return
    source = resolve_source(recipe.model)
    with work(flags) as console:
        from compressor.pipeline.pipeline import run_pipeline
        from compressor.pipeline.steps import STAGES

        if flags["restart_from"] not in (None, *STAGES):
            raise UsageError(
                f"unknown stage {flags['restart_from']!r}", where="--restart-from", expected=", ".join(STAGES)
            )
        console.info(text)
        how = {name: flags[name] for name in ("resume", "overwrite", "restart_from", "check")}
        if isinstance(plan, FamilyPlan):
            family = run_family(source, plan, out_dir, console, **how)
            result, shown = family.to_json(), family_text(family)
        else:
            summary = run_pipeline(recipe, source, plan, out_dir, console, **how)
            result, shown = summary.to_json(), summary_text(summary)
    emit(result, flags, shown)
