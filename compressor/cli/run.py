"""`compress-export run`: all stages; and `plan`: what a run would do, without network, weights or torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from compressor.cli.bench_options import refuse_idle_options
from compressor.cli.from_recipe import Call, from_recipe
from compressor.cli.session import Show, emit, work
from compressor.core.console import Console
from compressor.core.errors import CompressExportError
from compressor.recipe.forms import parse_names

SECTIONS = (
    *(
        "target",
        "preflight",
        "outcome",
        "search",
        "interleave",
        "prune",
        "calibration",
        "masks",
        "repair",
        "distill",
        "sparsify",
        "quantize",
        "export",
        "evaluate",
        "bench",
        "gates",
    ),
)


@from_recipe(*SECTIONS, output=None)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(),
    help="Directory of the run; by default ./MODEL-TARGET, or ./MODEL-TARGET-fp8 with --fp8.",
)
@click.option(
    "--restart-from",
    metavar="STAGE",
    help="Delete the output of this stage, such as distill, and of all later stages, and run them again.",
)
@click.option(
    "--keep",
    metavar="PART,...",
    default="student,exports,stages",
    show_default=True,
    help="Parts of a finished run whose weights are kept: student, exports, stages. Stages take most of the "
    "disk; without them the run cannot be continued with other settings. After a failed gate all are kept.",
)
@click.option(
    "--push-to-hub",
    metavar="OWNER/NAME",
    help="Upload the finished run, without what --keep deletes, to this repository of the Hugging Face Hub, "
    "if no gate fails.",
)
@click.option("--dry-run", is_flag=True, help="Show what the run would do, without doing it.")
def run(
    call: Call,
    show: Show,
    restart_from: str | None,
    keep: str,
    push_to_hub: str | None,
    dry_run: bool,  # noqa: FBT001 - as click passes it
) -> None:
    """Prune, distill, sparsify, quantize, export, verify and benchmark MODEL.

    MODEL is an alias such as llama3.1-8b, a Hugging Face id, a directory or a .gguf file. The word `run` may
    be left out.

    For example:

    \b
      compress-export llama3.1-8b --target 4b --fp8
      compress-export ./my-model --target 60% --train-data corpus.jsonl --tokens 100m -o out
    """
    from compressor import api
    from compressor.cli.gate import refuse_failed_gates
    from compressor.cli.render import finished_text, planned_text

    parts = api.kept_parts(parse_names(keep))
    if push_to_hub:
        api.require_publishable(call.recipe, push_to_hub, asks_hub=not dry_run)
    asks_outcome = bool(call.recipe.outcome.goals)
    if dry_run or not asks_outcome:
        made = api.plan(call.recipe, call.out_dir)
        refuse_idle_options(call, made)
    if dry_run:
        emit(made.to_json(), show, planned_text(made))
        return
    with work(show, call.recipe.device) as console:
        execution = replace(call.execution, console=console)
        if asks_outcome:
            made = api.settle(call.recipe, call.out_dir, execution=execution)
            refuse_idle_options(call, made)
        console.info(planned_text(made, costs=False))
        summary = api.run(call.recipe, call.out_dir, restart_from=restart_from, execution=execution)
        gates, refused = list(api.gates_of(summary)), None
        if not any(report.failed for _, report in gates):
            for directory in api.directories_of(summary):
                api.clean(directory, keep=parts, console=console)
                refused = _upload(directory, push_to_hub, console)
    emit(summary.to_json(), show, finished_text(summary))
    refuse_failed_gates(gates)
    if refused is not None:
        raise refused


def _upload(directory: Path, hub: str | None, console: Console) -> CompressExportError | None:
    """Upload a finished run where that is asked for; an error is returned, as the result comes first."""
    from compressor import api

    try:
        if hub:
            api.publish(directory, hub=hub, console=console)
    except CompressExportError as error:
        return error
    return None


@from_recipe(*SECTIONS, output=None)
@click.option(
    "--gpu",
    metavar="NAME",
    default="h100",
    show_default=True,
    help="GPU model that hours and costs are estimated for; if given, a target speed-up or latency is meant "
    "for it instead of this machine.",
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
def plan(call: Call, show: Show, gpu: str, num_gpus: int, mfu: float, gpu_hour_price: float | None) -> None:
    """Show the shapes, parameters, memory, disk space, hours and costs of a run, without doing it.

    Nothing is written, and nothing is downloaded but the config.json of a hub model that has no alias.
    """
    from compressor import api
    from compressor.cli.render import planned_text
    from compressor.planning.cost import Hardware

    hardware = Hardware(gpu=gpu, num_gpus=num_gpus, utilisation=mfu, gpu_hour_price=gpu_hour_price)
    is_named = click.get_current_context().get_parameter_source("gpu") != ParameterSource.DEFAULT
    made = api.plan(call.recipe, hardware=hardware, gpu=gpu if is_named else None)
    refuse_idle_options(call, made)
    emit(made.to_json(), show, planned_text(made))
