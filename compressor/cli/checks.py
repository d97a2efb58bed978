"""`compress-export doctor` and `verify`: what a machine can do, and whether a directory is what it says."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.session import Show, emit, showing, work


@click.command()
@showing
def doctor(show: Show) -> None:
    """Show library versions, GPUs, TensorRT-LLM's engine builder, disk space and access to the hub."""
    from compressor.cli.render import doctor_text

    with work(show):
        from compressor.pipeline.doctor import examine

        report = examine()
    emit(report.to_json(), show, doctor_text(report))


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="Checkpoint that DIRECTORY was made from; for a run, its teacher.",
)
@click.option("--sparsity", metavar="N:M", help="Fail unless a checkpoint follows this pattern, such as 2:4.")
@showing
def verify(directory: Path, source: Path | None, sparsity: str | None, show: Show) -> None:
    """Check every file, shape and number in the DIRECTORY of a run, family, stage, export or checkpoint.

    The directory is also compared with what it was made from: a run holds that itself, for others name it
    with --source. Sparsity is checked in every tensor if it was recorded or --sparsity is given.
    """
    from compressor import api
    from compressor.cli.render import verification_text

    with work(show):
        report = api.verify(directory, source=source, sparsity=sparsity)
    emit(report.to_json(), show, verification_text(report))
