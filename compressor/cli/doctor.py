"""`compress-export doctor`: what this machine can do."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli.options import reporting


@click.command()
@reporting
def doctor(**flags: Any) -> None:
    """Check versions, GPU, engine builder, disk and hub access."""
    from compressor.cli.render import doctor_text
    from compressor.cli.session import emit, work

    with work(flags):
        from compressor.pipeline.doctor import examine

        report = examine()
    emit(report.to_json(), flags, doctor_text(report))
