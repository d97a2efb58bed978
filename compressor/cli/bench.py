"""`compress-export bench`: `run` (the default) measures models in pairs, `compare` is the release gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click_default_group import DefaultGroup

from compressor.choices.runtimes import RUNTIMES
from compressor.cli.bench_options import refuse_without_effect
from compressor.cli.compare import compare
from compressor.cli.environment import PathLines
from compressor.cli.from_recipe import Call, ChoiceOption, Work, from_recipe, stage_command
from compressor.recipe.forms import parse_names

if TYPE_CHECKING:
    from compressor.runs.artifact import ModelArtifact


@click.group(cls=DefaultGroup, default="run", default_if_no_args=False)
def bench() -> None:
    """Measure the speed of models in pairs (`run`), and compare two results (`compare`).

    The word `run` may be left out.

    For example:

    \b
      compress-export bench MODEL STUDENT -o DIR
      compress-export bench compare BEFORE.json NOW.json
    """


def _report(made: ModelArtifact) -> str:
    from bench.report.markdown import render_markdown
    from bench.report.write import results_of_stage

    return render_markdown(results_of_stage(made.details, made.path))


@from_recipe("bench", own="bench", but=("bench.precisions",), output=None, model="MODEL...")
@click.option(
    "--precision",
    cls=ChoiceOption,
    choices=lambda: {
        row.name: f"{', '.join(row.precisions)}." for row in RUNTIMES.values() if row.precisions
    },
    metavar="NAME,...",
    help="Precisions to measure; by default the first one that is listed for the runtime. A server runs a "
    "model in the precision that it is stored in.",
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="Measure published shapes with random weights: each MODEL is ALIAS[:SHAPE], such as "
    "llama3.1-8b:4b-width, or llama3.1-8b:layer for one of its layers.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=PathLines(path_type=Path),
    help="TensorRT engine of a MODEL, given once per MODEL in the same order (runtimes tensorrt-llm and "
    "tensorrt-edge-llm); without it PyTorch serves MODEL in tensorrt-llm.",
)
@click.option("-o", "--output-dir", type=click.Path(), help="Directory to write; by default ./bench-MODEL.")
@stage_command(text=_report, result=lambda made: made.details)
def run(
    call: Call,
    models: tuple[str, ...],
    precision: str | None,
    random_weights: bool,  # noqa: FBT001 - as click passes it
    engines: tuple[Path, ...],
) -> Work:
    """Measure the throughput of MODELs in pairs; the first MODEL is the baseline.

    In each precision every MODEL is compared with the first. Each precision is compared with the first one,
    and every further MODEL in every further precision with the first MODEL in the first precision. ONNX
    graphs are built and verified once, beside the output directory, and used again.

    For example:

    \b
      compress-export bench teacher student --batch-size 1,8 -o speed
      compress-export bench --random-weights llama3.1-8b 4b-width 4b-depth
    """
    from compressor import api
    from compressor.models.source import short_name

    selection = api.select(
        models,
        runtime=call.recipe.bench.runtime,
        precisions=parse_names(precision) if precision else None,
        engines=engines,
        random_weights=random_weights,
    )
    refuse_without_effect(call, selection.runtime)
    default = Path(f"bench-{short_name(models[0]).replace(':', '-')}")
    return lambda out_dir, execution: api.bench(  # noqa: ARG005 - it has a name of its own by default
        selection,
        call.out_dir or default,
        settings=call.recipe.bench,
        export=call.recipe.export,
        execution=execution,
    )


bench.add_command(run)
bench.add_command(compare)
