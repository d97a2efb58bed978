"""`compress-export verify`: check any directory this tool wrote."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.session import Show, showing


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="What DIRECTORY was made from: a checkpoint; of a run its teacher.",
)
@click.option("--sparsity", metavar="N:M", help="Fail unless a checkpoint follows this pattern, such as 2:4.")
@showing
def verify(directory: Path, source: Path | None, sparsity: str | None, show: Show) -> None:
    """Check a run, a stage's or an export's directory, or a checkpoint: every file, shape and number.

    What a directory was made from is compared with it: inside a run by itself, elsewhere with --source.
    Sparsity is checked tensor by tensor wherever it was recorded, or is demanded.
    """
    from compressor import api
    from compressor.cli.render import verification_text
    from compressor.cli.session import emit, work

    with work(show):
        report = api.verify(directory, source=source, sparsity=sparsity)
    emit(report.to_json(), show, verification_text(report))
