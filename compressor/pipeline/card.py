"""Parts of the model card: the hub's front matter, where a model runs, what it cost, and its licence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import yaml

from compressor.bundle.licence import UNKNOWN, Terms
from compressor.bundle.lineage import LineageRecord
from compressor.choices.formats import FORMATS
from compressor.core.escaping import markdown_row, markdown_text
from compressor.data.files import is_local
from compressor.forecast.record import Predicted, TrainingForecast
from compressor.pipeline.summary import RunSummary
from exporters.verification.record import ExportRecord

# Which GPUs multiply in a precision; a format of none of these does not run on GPUs by itself.
_GENERATIONS = {
    "fp32": "any",
    "fp16": "NVIDIA Volta or newer",
    "bf16": "NVIDIA Ampere or newer (compute capability 8.0)",
    "fp8": "NVIDIA Ada, Hopper or newer (compute capability 8.9)",
    "int4": "decided by the runtime: weights are unpacked to 16 or 32 bits",
}
# What executes a format's own files when it is compared; other formats are read back by this tool.
_EXECUTES = {"onnx": "onnxruntime", "huggingface": "transformers"}
_PERCENT = 100
_HOUR_S = 3600
# Stages that compute what the plan counts as GPU-hours.
_TRAINING = ("prune", "reconstruct", "correct", "generate", "distill", "sparsify", "recover", "search")
_PUBLISHED = (
    "Published for a family of three models (arXiv 2407.14679): up to 40x fewer training tokens per model "
    "than from scratch, and 1.8x less computation for the family."
)


def card_name(directory: str, lineage: LineageRecord | None) -> str:
    """What the model is called: its directory, behind what its base model's licence wants in front."""
    begins = lineage.teacher.terms.name_begins if lineage else None
    if begins is None or directory.startswith(begins):
        return directory
    return f"{begins.replace(' ', '-')}-{directory}"


def front_matter(summary: RunSummary, *, name: str, base_model: str, tags: list[str]) -> str:
    """The YAML at the card's top, as the hub reads it."""
    terms = summary.lineage.teacher.terms if summary.lineage else None
    fields: dict[str, object] = {"base_model": base_model, "base_model_relation": "finetune"}
    if terms is not None and terms.identifier != UNKNOWN:
        fields["license"] = terms.identifier
    fields |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    if texts := _hub_texts(summary):
        fields["datasets"] = texts
    fields["model-index"] = [{"name": name, "results": list(_results(summary))}]
    return yaml.safe_dump(fields, width=math.inf, allow_unicode=True, sort_keys=False).rstrip("\n")


def place_lines(summary: RunSummary) -> list[str]:
    """In which precision every export is, which GPUs have it, and what it was tried in."""
    rows = [
        (name, export.precision, _GENERATIONS.get(export.precision, "-"), _tried(name, export, summary))
        for name, export in summary.exports.items()
    ]
    header = ("export", "precision", "GPU generations", "tried in, on the machine named below")
    lines = ["## Where it runs", "", *_table(header, rows)]
    if summary.bench is not None:
        runtimes = ", ".join(sorted({arm.runtime for arm in summary.bench.arms}))
        lines += ["", f"The benchmark ran {markdown_text(runtimes)}. No other server was tried."]
    else:
        lines += ["", "No server was tried: the run has no benchmark."]
    return lines


def economics_lines(summary: RunSummary) -> list[str]:
    """Tokens, hours and money of the run, beside training the student from scratch."""
    plan, training = summary.plan, summary.plan.training
    seconds = sum(
        entry.seconds for entry in summary.stages.values() if entry.stage.partition("-")[0] in _TRAINING
    )
    lines = [
        "## What it took",
        "",
        f"- measured on this machine: {seconds / _HOUR_S:.2f} hours of pruning, repair and training",
        f"- training tokens: {plan.tokens:,}",
    ]
    if training is None:
        return lines
    hours = plan.hours
    lines.append(
        f"- estimated on {markdown_text(hours.hardware)} at {hours.assumed_utilisation:.0%} of its rate: "
        f"{hours.gpu_hours:,.3f} GPU-hours, ${hours.cost_usd:,.2f}"
    )
    scratch = training.from_scratch
    ratios = {"tokens": scratch.tokens_ratio, "GPU-hours": scratch.gpu_hours_ratio}
    known = [f"{ratio:,.1f}x the {name}" for name, ratio in ratios.items() if ratio is not None]
    lines.append(
        f"- the same shape from scratch, estimated: {scratch.phase.tokens:,} tokens "
        f"({markdown_text(scratch.tokens_rule)}){''.join(f', {one}' for one in known)}"
    )
    return [*lines, f"- {_PUBLISHED}"]


def preflight_lines(summary: RunSummary) -> list[str]:
    """What was tried on a slice of the model before the run."""
    made = summary.preflight
    if made is None or not made.passed:
        return []
    tried = f"{len(made.stages)} stages and exports on {made.num_layers} layers of the model"
    return [f"- preflight: {tried} first, in {made.seconds:.0f} s"]


def forecast_lines(found: TrainingForecast | None) -> list[str]:
    """What the training was forecast to reach at a quarter, what it reached, and what more would bring."""
    if found is None or found.validation is None or found.at_quarter is None:
        return []
    quarter, verdict = found.at_quarter, "inside" if found.contained else "outside"
    reached = f"{found.validation.loss[-1]:.3f} nats per token, {verdict} the {quarter.share:.0%} interval"
    lines = [f"- held-out loss after training: {reached} forecast at a quarter, {_forecast(quarter.end)}"]
    if found.at_end is not None:
        lines.append(f"- forecast for twice the training tokens: {_forecast(found.at_end.twice)}")
    return lines


def _forecast(predicted: Predicted) -> str:
    return f"{predicted.loss:.3f} from {predicted.low:.3f} to {predicted.high:.3f}"


def licence_lines(lineage: LineageRecord | None) -> list[str]:
    """The base model's licence, and what it asks of this model."""
    terms = lineage.teacher.terms if lineage else Terms(identifier=UNKNOWN, known_from="no record")
    lines = ["## Licence", ""]
    if terms.identifier == UNKNOWN:
        lines.append(
            "The licence of the base model is unknown: nothing that came with it says it. Find it before "
            "this model is passed on."
        )
        return lines
    lines.append(
        f"The base model's licence is {markdown_text(terms.identifier)} (according to "
        f"{markdown_text(terms.known_from)}); it holds for this model too."
    )
    return lines + [line for notice in terms.notices for line in ("", markdown_text(notice))]


def _tried(name: str, export: ExportRecord, summary: RunSummary) -> str:
    if export.status == "not executed":
        return "nothing yet: its numbers were compared, not executed"
    row = FORMATS[name]
    library = None if row.needs_fp8 else _EXECUTES.get(row.option)
    if library is None:
        return f"this tool's reader of the format: {export.status}"
    return f"{library} {summary.versions.get(library, 'of unknown version')}: {export.status}"


def _hub_texts(summary: RunSummary) -> list[str]:
    """Data sets of the hub that the student was trained on, without configuration and split."""
    sources = [part.rpartition("=")[2] for part in summary.plan.text.training.split(", ")]
    names = [source.partition("@")[0].partition(":")[0] for source in sources if not is_local(source)]
    return sorted({name for name in names if name.count("/") == 1})


def _results(summary: RunSummary) -> Iterator[dict[str, object]]:
    """The student's figures as the hub's model index lists them."""
    evaluation = summary.evaluation
    names = [name for name in evaluation.models if name not in ("teacher", "corrected teacher", "quantized")]
    student = evaluation.models[names[-1]]
    task = {"type": "text-generation"}
    yield {
        "task": task,
        "dataset": {"name": "evaluation text of the run", "type": "text"},
        "metrics": [{"type": "perplexity", "value": round(student.perplexity, 4)}],
    }
    if summary.tasks is None:
        return
    scores = summary.tasks.models[names[-1]].tasks
    for name, settings in summary.tasks.tasks.items():
        value = round(_PERCENT * scores[name][settings.metric], 2)
        yield {
            "task": task,
            "dataset": {"name": f"{name} ({settings.shots}-shot)", "type": name},
            "metrics": [{"type": settings.metric.partition(",")[0], "value": value}],
        }


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [markdown_row(header), "|" + "---|" * len(header), *map(markdown_row, rows)]
