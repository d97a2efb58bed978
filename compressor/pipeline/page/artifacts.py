"""Quality, size and speed of every artifact of a run: rows of a table, and what is drawn of them.

An artifact's perplexity is its own where it was measured as it computes (`--eval-exports`). Else it is that
of the model that was evaluated in its arithmetic: of the 16-bit student for formats of 16 and 32 bits, of the
FP8 one for FP8. A format of another precision has none. Its speed is that of the benchmark's arms in its
format's precision, in the first cell that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report.charts import measured_arms
from bench.report.results import Results
from compressor.choices.formats import FORMATS, options
from compressor.choices.runtimes import RUNTIMES
from compressor.core.svg import Point, Series, xy_chart
from compressor.pipeline.measured import SIXTEEN_BIT
from compressor.pipeline.summary import RunSummary
from compressor.runs.artifact import read_artifact
from exporters.registry import place_of

TEACHER = "teacher"
_QUANTIZED = "quantized"
_WHOLE = ("bf16", "fp16", "fp32")
_BYTES_OF_16_BIT, _MEBIBYTE = 2, 1024**2


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One row; None where something was not measured.

    Attributes:
        num_bytes: Of all its files; of the teacher of its weights in 16 bits.
        kl: From the 16-bit student's predictions to its own, in nats.
    """

    name: str
    precision: str
    num_bytes: int
    perplexity: float | None
    verified: str
    kl: float | None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One arm of the benchmark at one batch size."""

    arm: str
    where: str
    output_tokens_per_s: float
    perplexity: float | None


def artifacts_of(out_dir: Path, summary: RunSummary) -> list[Artifact]:
    """The teacher, and every export in the run's directory."""
    models, teacher = summary.evaluation.models, summary.plan.teacher
    rows = [
        Artifact(
            name=TEACHER,
            precision="16bit",
            num_bytes=_BYTES_OF_16_BIT * teacher.num_parameters,
            perplexity=models[TEACHER].perplexity if TEACHER in models else None,
            verified="-",
            kl=None,
        )
    ]
    for name, export in summary.exports.items():
        files = read_artifact(out_dir / place_of(name)).files
        logits = export.logits.get("all")
        rows.append(
            Artifact(
                name=name,
                precision=export.precision,
                num_bytes=sum(record["bytes"] for record in files.values()),
                perplexity=_perplexity(summary, FORMATS[name].precisions[0], name),
                verified=export.status,
                kl=logits.kl if logits else None,
            )
        )
    return rows


def speeds_of(summary: RunSummary) -> list[Speed]:
    """Every arm at every lengths and batch size."""
    if summary.bench is None:
        return []
    return [
        Speed(
            arm=one.arm,
            where=f"{one.isl}/{one.osl} x {one.batch_size}",
            output_tokens_per_s=one.output_tokens_per_s,
            perplexity=_perplexity_of_arm(summary, summary.bench, one.arm),
        )
        for one in measured_arms(summary.bench)
    ]


def charts_of_artifacts(
    artifacts: Sequence[Artifact], speeds: Sequence[Speed], protocol: str
) -> list[tuple[str, str]]:
    """Title and drawing: perplexity by size, and by speed in the first cell of the benchmark."""
    charts = []
    sized = {
        one.name: Point(
            x=one.num_bytes / _MEBIBYTE,
            y=one.perplexity,
            label=f"{one.name}: perplexity {one.perplexity:.3f}, {one.num_bytes:,} bytes",
        )
        for one in artifacts
        if one.perplexity is not None
    }
    if len(sized) > 1:
        charts.append(("Quality against size", _scatter(sized, "size [MiB]", protocol)))
    first = speeds[0].where if speeds else ""
    fast = {
        one.arm: Point(
            x=one.output_tokens_per_s,
            y=one.perplexity,
            label=f"{one.arm}: perplexity {one.perplexity:.3f}, {one.output_tokens_per_s:.1f} tokens/s",
        )
        for one in speeds
        if one.where == first and one.perplexity is not None
    }
    if len(fast) > 1:
        title = f"Quality against speed, {first}"
        charts.append((title, _scatter(fast, "output throughput [tokens/s]", protocol)))
    return charts


def _scatter(points: Mapping[str, Point], x_title: str, protocol: str) -> str:
    series = [Series(name=name, points=[point], is_joined=False) for name, point in points.items()]
    return xy_chart(
        series, x_title=x_title, y_title=f"perplexity ({protocol.replace('_', '-')}), lower is better"
    )


def _perplexity(summary: RunSummary, precision: str, form: str | None) -> float | None:
    """The student's perplexity as this format, or in this precision, where it was evaluated so."""
    exports, models = summary.evaluated_exports, summary.evaluation.models
    if exports is not None and form in exports.models:
        return exports.models[form].perplexity
    if precision in _WHOLE:
        found = [name for name in SIXTEEN_BIT if name in models]
        return models[found[-1]].perplexity if found else None
    return models[_QUANTIZED].perplexity if precision == "fp8" and _QUANTIZED in models else None


def _perplexity_of_arm(summary: RunSummary, bench: Results, arm: str) -> float | None:
    record, models = next(one for one in bench.arms if one.id == arm), summary.evaluation.models
    if record.model == TEACHER:
        is_whole = record.precision in _WHOLE and TEACHER in models
        return models[TEACHER].perplexity if is_whole else None
    reads = RUNTIMES[record.runtime].reads if record.runtime in RUNTIMES else ""
    return _perplexity(summary, record.precision, options().get(reads, {}).get(record.precision))
