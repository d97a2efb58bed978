"""Reports of a benchmark: `results.json` and `results.csv` for programs, a page and Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from bench.compare.soundness import complaint_about
from bench.report.csv_table import render_csv
from bench.report.html import render_html
from bench.report.markdown import render_markdown
from bench.report.results import SCHEMA, Results
from compressor.core.errors import CompressExportError, UsageError, VerificationError
from compressor.core.json_files import read_json_mapping, refuse_other_version
from compressor.runs.artifact import write_json, write_text

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
    write_json(out_dir / RESULTS_FILE, results.to_json())
    for name, render in ((CSV_FILE, render_csv), (MARKDOWN_FILE, render_markdown), (HTML_FILE, render_html)):
        write_text(out_dir / name, render(results))


def read_results(path: Path) -> Results:
    """Read a `results.json`, which people keep and edit.

    A UsageError when it is missing, not of this schema (types included), or no benchmark's numbers.
    """
    text = json.dumps(read_json_mapping(path, what="the benchmark's results", error=UsageError))
    return _checked(text, where=path, error=UsageError)


def results_of_stage(details: Mapping[str, object], where: Path) -> Results:
    """The results that a bench stage left in its record; a VerificationError for what it never wrote."""
    return _checked(json.dumps(details), where=where, error=VerificationError)


def _checked(text: str, *, where: Path, error: type[CompressExportError]) -> Results:
    again = "measure again with this version: the same compress-export bench command with --overwrite"
    what = "this results.json"
    refuse_other_version(json.loads(text), SCHEMA, what=what, where=where, error=error, hint=again)
    try:
        results = Results.model_validate_json(text, strict=True)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise error(
            "this file is not a results.json of bench",
            where=f"{where}: {field}" if field else str(where),
            expected=f"schema {SCHEMA}: {first['msg']}",
            found=ascii(first["input"])[:80],
            hint="name the results.json that compress-export bench wrote, as it was written",
        ) from problem
    if complaint := complaint_about(results):
        raise error(
            "the numbers of this results.json contradict each other",
            where=str(where),
            found=complaint,
            hint="measure again; only `gated` and `not_gated_reason` may be edited in this file",
        )
    return results


if __name__ == "__main__":
    write_schema()
