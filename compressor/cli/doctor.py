"""`compress-export doctor`: what this machine can do."""

from __future__ import annotations

import click

from compressor.cli.session import Show, showing


@click.command()
@showing
def doctor(show: Show) -> None:
    """Check versions, GPU, engine builder, disk and hub access."""
    from compressor.cli.render import doctor_text
    from compressor.cli.session import emit, work

    with work(show):
        from compressor.pipeline.doctor import examine

        report = examine()
    emit(report.to_json(), show, doctor_text(report))
