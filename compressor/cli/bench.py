"""`compress-export bench`: `run` (the default) measures models in pairs, `compare` is the release gate."""

from __future__ import annotations

import click
from click_default_group import DefaultGroup

from compressor.cli.bench_run import run
from compressor.cli.compare import compare


@click.group(cls=DefaultGroup, default="run", default_if_no_args=False)
def bench() -> None:
    """Measure the speed of models in pairs (`run`), and compare two results (`compare`).

    The word `run` may be left out.

    For example:

    \b
      compress-export bench MODEL STUDENT -o DIR
      compress-export bench compare BEFORE.json NOW.json
    """


bench.add_command(run)
bench.add_command(compare)
