"""What the Markdown report and the page share: their Jinja environment and the names their templates use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.report.numbers import or_unknown, show_gib, show_interval, show_number, show_peak, show_size
from bench.report.results import Results
from bench.report.tables import TABLES, wording_of
from bench.report.waterfall import waterfalls_of


def render(
    file: str,
    results: Results,
    *,
    escape: bool,
    finalize: Callable[[object], object] | None = None,
    **names: object,
) -> str:
    """Fill in a template beside this file.

    Text is HTML where `escape` says so; every placed value goes through `finalize`; `names` are those that
    only this template uses.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not escape,
        autoescape=escape,  # noqa: S701 - Markdown is escaped by `finalize`
        finalize=finalize,
    )
    environment.filters.update(
        gib=show_gib,
        or_unknown=or_unknown,
        interval=show_interval,
        number=show_number,
        peak=show_peak,
        size=show_size,
    )
    return environment.get_template(file).render(
        results=results,
        tables=TABLES,
        wording=wording_of(results),
        runtimes=", ".join(sorted({arm.runtime for arm in results.arms})),
        has_roofline=any(cell.roofline for one in results.comparisons for cell in one.cells),
        waterfalls=waterfalls_of(results),
        **names,
    )
