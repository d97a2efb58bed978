"""Reports of a benchmark: `results.json` and `results.csv` for programs, a page and Markdown for people."""

from __future__ import annotations

from pathlib import Path

from bench.report.csv_table import render_csv
from bench.report.html import render_html
from bench.report.markdown import render_markdown
from bench.results import Results
from compressor.artifact import write_json

RESULTS_FILE = "results.json"
CSV_FILE = "results.csv"
MARKDOWN_FILE = "report.md"
HTML_FILE = "report.html"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")


def write_schema() -> None:
    """Publish the schema of `results.json` again."""
    write_json(SCHEMA_FILE, Results.model_json_schema())


def write_reports(results: Results, out_dir: Path) -> None:
    """Write all four files into `out_dir`, which is created if absent."""
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / RESULTS_FILE, results.model_dump(mode="json", by_alias=True))
    for name, render in ((CSV_FILE, render_csv), (MARKDOWN_FILE, render_markdown), (HTML_FILE, render_html)):
        (out_dir / name).write_text(render(results), encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read a `results.json`.

    Raises:
        pydantic.ValidationError: when it is not of this schema.
    """
    return Results.model_validate_json(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    write_schema()
