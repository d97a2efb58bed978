"""`compress-export verify`: check any directory this tool wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import reporting


@click.command()
@click.argument("directory", type=click.Path())
@click.option(
    "--source", default=None, help="What DIRECTORY was made from: a checkpoint; of a run its teacher."
)
@click.option("--sparsity", default=None, help="Demand this pattern, such as 2:4, of a checkpoint.")
@reporting
def verify(directory: str, source: str | None, sparsity: str | None, **flags: Any) -> None:
    """Check a run, a stage's or an export's directory, or a checkpoint: every file, shape and number.

    What a directory was made from is compared with it: inside a run by itself, elsewhere with --source.
    Sparsity is checked tensor by tensor wherever it was promised, or is demanded.
    """
    from compressor.cli.render import verification_text
    from compressor.cli.session import emit, work
    from compressor.core.errors import UsageError

    if not Path(directory).is_dir():
        raise UsageError("this directory does not exist", where=directory)
    with work(flags):
        from compressor.models.sparse.pattern import parse_pattern
        from compressor.pipeline.model_card import check_card
        from exporters.verification.verify import verify_directory

        pattern = parse_pattern(sparsity) if sparsity else None
        report = verify_directory(Path(directory), pattern=pattern, source=Path(source) if source else None)
        if report.kind == "run":
            check_card(Path(directory))
    emit(report.to_json(), flags, verification_text(report))
