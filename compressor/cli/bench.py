"""`compress-export bench`: `run` (the default) measures models in pairs, `compare` is the release gate."""

from __future__ import annotations

import click
from click_default_group import DefaultGroup

from compressor.cli.bench_run import run
from compressor.cli.compare import compare


@click.group(cls=DefaultGroup, default="run", default_if_no_args=False)
def bench() -> None:
    """Measure models in pairs, and compare benchmarks.

    \b
    compress-export bench MODEL STUDENT -o DIR     the same as: compress-export bench run ...
    compress-export bench compare BEFORE.json NOW.json
    """  # noqa: D301 - the \b must reach click as one character


bench.add_command(run)
bench.add_command(compare)
