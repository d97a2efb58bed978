"""`compress-export plan`: what a run would do, without network, weights or torch."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.run import SECTIONS
from compressor.cli.session import Show


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option(
    "--gpu",
    metavar="NAME",
    default="h100",
    show_default=True,
    help="GPU model that hours and costs are estimated for.",
)
@click.option(
    "--num-gpus",
    metavar="INTEGER",
    type=click.IntRange(1, 10**9),
    default=8,
    show_default=True,
    help="Number of GPUs that hours and costs are estimated for.",
)
@click.option(
    "--mfu",
    metavar="NUMBER",
    type=float,
    default=0.4,
    show_default=True,
    help="Model FLOPs utilization that hours are estimated with: a share (0 to 1) of the GPU's bf16 rate.",
)
@click.option(
    "--gpu-hour-price",
    metavar="NUMBER",
    type=float,
    help="Price of a GPU-hour in US dollars; by default an assumed price for that GPU.",
)
@from_recipe(*SECTIONS, output=None)
def plan(call: Call, show: Show, gpu: str, num_gpus: int, mfu: float, gpu_hour_price: float | None) -> None:
    """Show the shapes, parameters, memory, disk space, hours and costs of a run, without doing it.

    Nothing is downloaded or written.
    """
    from compressor import api
    from compressor.cli.render import planned_text
    from compressor.cli.session import emit
    from compressor.planning.cost import Hardware

    hardware = Hardware(gpu=gpu, num_gpus=num_gpus, utilisation=mfu, gpu_hour_price=gpu_hour_price)
    made = api.plan(call.recipe, hardware=hardware)
    emit(made.to_json(), show, planned_text(made))
