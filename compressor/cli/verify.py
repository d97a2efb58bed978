"""`compress-export verify`: check any directory this tool wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import reporting


@click.command()
@click.argument("directory", type=click.Path())
@click.option("--sparsity", default=None, help="Demand this pattern, such as 2:4, of a checkpoint.")
@reporting
def verify(directory: str, sparsity: str | None, **flags: Any) -> None:
    """Check a checkpoint, an export or a whole run directory: files, shapes, finite weights, logits.

    Sparsity is checked tensor by tensor wherever it was promised, or is demanded.
    """
    from compressor.cli.render import verification_text
    from compressor.cli.session import emit, work
    from compressor.errors import UsageError

    if not Path(directory).is_dir():
        raise UsageError("this directory does not exist", where=directory)
    with work(flags):
        from compressor.sparsity.pattern import parse_pattern
        from exporters.verify import verify_directory

        pattern = parse_pattern(sparsity) if sparsity else None
        report = verify_directory(Path(directory), pattern=pattern)
    emit(report, flags, verification_text(report))
