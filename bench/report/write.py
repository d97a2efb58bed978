"""Reports of a benchmark: `results.json` for programs, `report.md` for people."""

from __future__ import annotations

from pathlib import Path

from bench.report.markdown import render_markdown
from bench.results import Results
from compressor.artifact import write_json

RESULTS_FILE = "results.json"
MARKDOWN_FILE = "report.md"


def write_reports(results: Results, out_dir: Path) -> None:
    """Write both files into `out_dir`, which is created if absent."""
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / RESULTS_FILE, results.model_dump(mode="json", by_alias=True))
    (out_dir / MARKDOWN_FILE).write_text(render_markdown(results), encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read a `results.json`.

    Raises:
        pydantic.ValidationError: when it is not of this schema.
    """
    return Results.model_validate_json(path.read_text(encoding="utf-8"))
