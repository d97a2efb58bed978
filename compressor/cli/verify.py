"""`compress-export verify`: check any directory this tool wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import reporting


@click.command()
@click.argument("directory", type=click.Path())
@reporting
def verify(directory: str, **flags: Any) -> None:
    """Check a checkpoint, an export or a whole run directory: files, shapes, finite weights, logits."""
    from compressor.cli.render import verification_text
    from compressor.cli.session import emit, work
    from compressor.errors import UsageError

    if not Path(directory).is_dir():
        raise UsageError("this directory does not exist", where=directory)
    with work(flags):
        from exporters.verify import verify_directory

        report = verify_directory(Path(directory))
    emit(report, flags, verification_text(report))
