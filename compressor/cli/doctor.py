"""`compress-export doctor`: what this machine can do."""

from __future__ import annotations

import click

from compressor.cli.session import Show, showing


@click.command()
@showing
def doctor(show: Show) -> None:
    """Show library versions, GPUs, TensorRT-LLM's engine builder, disk space and access to the hub."""
    from compressor.cli.render import doctor_text
    from compressor.cli.session import emit, work

    with work(show):
        from compressor.pipeline.doctor import examine

        report = examine()
    emit(report.to_json(), show, doctor_text(report))
