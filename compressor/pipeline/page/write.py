"""`report.html`: a run on one page that opens from disk, asks nothing of a network and runs no script.

It is made from the run's records alone. Numbers that are rounded carry the unrounded value in `data-value`.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report.charts import charts_of
from bench.report.numbers import NO_NUMBER, show_size
from compressor.bundle.lineage import LINEAGE_FILE
from compressor.gates.report import HEADER, gate_rows
from compressor.pipeline.card import card_name
from compressor.pipeline.page.artifacts import artifacts_of, charts_of_artifacts, speeds_of
from compressor.pipeline.page.removed import Picture, pictures_of
from compressor.pipeline.page.training import charts_of_training
from compressor.pipeline.report import closed_gap, public_name, tables_of, text_name
from compressor.pipeline.summary import PAGE_FILE, PLACES, RunSummary, repairs_of
from compressor.pruning.plan import PLAN_FILE
from compressor.runs.artifact import write_text

_TEMPLATE = "run.html.j2"


def write_page(out_dir: Path, summary: RunSummary) -> None:
    """Write OUT/report.html."""
    write_text(out_dir / PAGE_FILE, render_page(out_dir, summary))


def render_page(out_dir: Path, summary: RunSummary) -> str:
    """The whole page; every number comes from `summary`, and from the records of its artifacts."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters.update(number=_number, size=_size)
    artifacts, speeds = artifacts_of(out_dir, summary), speeds_of(summary)
    forecast = summary.distill.forecast if summary.distill else None
    return environment.get_template(_TEMPLATE).render(
        name=card_name(out_dir.absolute().name, summary.lineage),
        summary=summary,
        teacher=public_name(summary.plan.model),
        training_text=text_name(summary.plan.text.training),
        closed=closed_gap(summary.evaluation),
        gates=(HEADER, gate_rows(summary.gates)) if summary.gates else None,
        cuts=_cuts(out_dir, summary),
        repairs=repairs_of(summary),
        training=_marked(charts_of_training(summary.distill)) if summary.distill else [],
        forecast=forecast,
        artifacts=artifacts,
        speeds=speeds,
        scatter=_marked(charts_of_artifacts(artifacts, speeds, summary.evaluation.protocol.split)),
        tables=[table for table in tables_of(summary) if not table[0].startswith("Gates")],
        bench=_marked([(one.title, one.svg) for one in charts_of(summary.bench)]) if summary.bench else [],
        bench_place=PLACES["bench"],
        lineage_file=LINEAGE_FILE,
    )


def _cuts(out_dir: Path, summary: RunSummary) -> list[tuple[str, list[Picture]]]:
    """Name and pictures of every cut that chose units by itself."""
    names = [f"{cut.name}-" for cut in summary.cuts[:-1]] + [""]
    found = []
    for name in names:
        directory = out_dir / f"stages/{name}prune"
        if (directory / PLAN_FILE).is_file():
            found.append((name.rstrip("-"), pictures_of(directory)))
    return found


def _marked(charts: list[tuple[str, str]]) -> list[tuple[str, Markup]]:
    """Drawings of our own, in which every name is escaped already."""
    return [(title, Markup(svg)) for title, svg in charts]  # noqa: S704


def _number(value: float | None, shown: str = "{:,.3f}") -> Markup:
    """A cell of a number, which may be missing."""
    if value is None:
        return Markup('<td class="n">{}</td>').format(NO_NUMBER)
    return Markup('<td class="n" data-value="{}">{}</td>').format(repr(value), shown.format(value))


def _size(num_bytes: int) -> Markup:
    return Markup('<td class="n" data-value="{}">{}</td>').format(num_bytes, show_size(num_bytes))
