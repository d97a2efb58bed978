"""`compress-export bench`: models against a baseline, in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.options import OUTPUT, common, parse_integers, parse_pairs, recipe_overrides

if TYPE_CHECKING:
    from compressor.recipe import ExportFormat

PRECISIONS: dict[str, ExportFormat] = {"fp32": "onnx", "fp16": "onnx-fp16", "int4": "onnx-int4"}


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--isl-osl", callback=parse_pairs, default=None, help="Lengths: 128/128,1000/1000")
@click.option("--batch-size", callback=parse_integers, default=None, help="Batch sizes: 1,8")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="fp32", show_default=True)
@OUTPUT
@common
def bench(models: tuple[str, ...], precision: str, output_dir: str, **flags: Any) -> None:
    """Measure throughput of MODELs in pairs; the first MODEL is the baseline.

    Graphs are built and verified once, beside the output directory, and used again.
    """
    from compressor.cli.session import emit, work
    from compressor.errors import UsageError
    from compressor.recipe import load_recipe

    if len(models) == 1:
        raise UsageError("a benchmark compares a baseline with at least one other model")
    recipe = load_recipe(None, recipe_overrides({**flags, "model": models[0]}))
    out_dir = Path(output_dir)
    with work(flags) as console:
        from bench.report.markdown import render_markdown
        from bench.results import Results
        from bench.stage import BENCH, BenchStageConfig, arm_name
        from compressor.cli.stage_command import SCRATCH, execute_stage, open_model
        from compressor.models.load import distinct_names
        from exporters.base import export_stage

        names = distinct_names(models)
        sources = [open_model(model, out_dir, flags) for model in models]
        graphs = {}
        for name, source in zip(names, sources, strict=True):
            graph = out_dir.absolute().parent / SCRATCH / f"{source.fingerprint[:16]}-{precision}"
            graphs[arm_name(name, precision)] = execute_stage(
                export_stage(PRECISIONS[precision]),
                recipe.export,
                source,
                graph,
                {**flags, "resume": False},
                console,
            )
        baseline, *candidates = graphs
        pairs = tuple((baseline, other) for other in candidates)
        config = BenchStageConfig(bench=recipe.bench, comparisons=pairs)
        artifact = execute_stage(BENCH, config, sources[0], out_dir, flags, console, others=graphs)
        report = render_markdown(Results.model_validate(artifact.details))
    emit(artifact.details, flags, report)
