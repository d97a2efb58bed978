"""`compress-export plan`: what a run would do, without network, weights or torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import calibration, recipe_overrides, reporting, sparsity
from compressor.cli.parsing import Count, parse_list, parse_shape
from compressor.cli.sections import SectionedCommand
from compressor.cli.training_options import distillation, training


@click.command(cls=SectionedCommand)
@click.argument("model", required=False)
@click.option(
    "--target", default=None, help="Size (4b, 4.5B, 60%) or published shape (4b-width); 8b,4b for a family."
)
@click.option("--shape", callback=parse_shape, default=None, help="hidden_size=432,intermediate_size=1024")
@click.option("--fp8", is_flag=True, default=None, help="FP8 weights and activations.")
@click.option("--formats", callback=parse_list, default=None, help="Exports, comma separated.")
@click.option("--config", type=click.Path(), default=None, help="Recipe in YAML; flags override it.")
@click.option("--gpu", default="h100", show_default=True, help="Hardware of the estimates.")
@click.option("--num-gpus", type=Count(1), default=8, show_default=True)
@click.option(
    "--utilisation",
    type=float,
    default=0.4,
    show_default=True,
    help="Share of the GPU's bf16 rate.",
)
@click.option("--gpu-hour-price", type=float, default=None, help="US dollars. [assumed, per GPU]")
@click.option("--recover-tokens", default=None, help="Budget after sparsifying. [as --tokens]")
@sparsity
@calibration
@training
@distillation
@reporting
def plan(
    config: str | None,
    gpu: str,
    num_gpus: int,
    utilisation: float,
    gpu_hour_price: float | None,
    **flags: Any,
) -> None:
    """Show shapes, parameters, memory, disk, hours and costs of a run."""
    from compressor.cli.session import default_output, emit
    from compressor.cli.show_plan import planned
    from compressor.core.errors import UsageError
    from compressor.models.load import plan_dims, short_name
    from compressor.planning.cost import Hardware
    from compressor.recipe.recipe import load_recipe

    if flags["model"] is None and config is None:
        example = "compress-export plan llama3.1-8b --target 4b"
        raise UsageError("a plan needs a MODEL, or a recipe with one", hint=example)
    recipe = load_recipe(Path(config) if config else None, recipe_overrides(flags))
    made, text = planned(
        recipe,
        plan_dims(recipe.model),
        out_dir=default_output(short_name(recipe.model), recipe.target, fp8=recipe.quantize.fp8),
        hardware=Hardware(gpu=gpu, num_gpus=num_gpus, utilisation=utilisation, gpu_hour_price=gpu_hour_price),
    )
    emit(made.to_json(), flags, text)
