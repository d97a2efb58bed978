"""The end of a run in words: tables for the terminal, and the model card, both from recorded results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.report.results import ArmCell, CellResult, Results, Summary
from bench.report.tables import wording_of
from compressor.choices.formats import FORMATS
from compressor.core.errors import VerificationError
from compressor.core.escaping import markdown_code, markdown_row, markdown_text
from compressor.data.files import is_local
from compressor.evaluation.record import EvaluationRecord
from compressor.gates.report import HEADER, gate_rows
from compressor.models.dims import Dims
from compressor.models.presets import PRESETS
from compressor.pipeline.card import (
    card_name,
    economics_lines,
    forecast_lines,
    front_matter,
    licence_lines,
    place_lines,
    preflight_lines,
)
from compressor.pipeline.chat_table import chat_tables
from compressor.pipeline.perplexity_table import perplexity_table
from compressor.pipeline.promise import promise_row
from compressor.pipeline.summary import (
    PLACES,
    DistillRecord,
    DynamicBatchesRecord,
    PruneRecord,
    RunSummary,
    fitting,
    read_summary,
    repairs_of,
)
from compressor.pipeline.task_table import task_table
from compressor.planning.plan import Plan
from compressor.planning.search_plan import name_of
from compressor.pruning.depth_record import PAGE_FILE
from compressor.runs.artifact import write_text
from compressor.runs.manifest import STUDENT
from compressor.search.record import rows_of
from exporters.verification.record import Engine, ExportRecord

CARD_FILE = "README.md"
MAX_COURSE_ROWS = 12
_NAMES = re.compile(
    r"`[^`]*`|^# .*$|^base_model: .*$|^- name: .*$|^- (calibration|training|evaluation) text: .*$"
)
_PROMISE = ("of the student", "conditions", "promised", "predicted", "measured (95 %)", "verdict")
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def tables_of(summary: RunSummary) -> list[Table]:
    """Title, header and rows of every result a run has."""
    tables = result_tables(summary.evaluation, summary.exports, summary.bench)
    tables += chat_tables(summary.chat) if summary.chat else []
    if summary.evaluated_exports:
        title, header, rows = perplexity_table(summary.evaluated_exports)
        tables.insert(2, (f"Exports as they compute ({title})", header, rows))
    if summary.tasks:
        tables.insert(1, task_table(summary.tasks))
    if summary.gates:
        tables.insert(0, (f"Gates: {summary.gates.verdict}", HEADER, gate_rows(summary.gates)))
    if summary.distill and summary.distill.dynamic_batches:
        tables.insert(2 + bool(summary.tasks) + bool(summary.gates), _course(summary.distill.dynamic_batches))
    if (promise := summary.plan.promise) and summary.promise:
        tables.insert(0, ("Promise", _PROMISE, [promise_row(promise, summary.promise)]))
    if summary.cuts:
        tables.insert(0, _cuts(summary))
    if summary.search:
        tables.insert(0, rows_of(summary.search))
    return tables


def _cuts(summary: RunSummary) -> Table:
    """What each of several cuts left, after the training that followed it."""
    rows = []
    for planned, cut in zip(summary.plan.cuts, summary.cuts, strict=True):
        removed = ", ".join(map(str, cut.removed_layers)) or "none"
        sizes = (name_of(planned.shape), f"{planned.num_parameters:,}", removed)
        rows.append((cut.name, *sizes, f"{cut.tokens:,}", f"{cut.perplexity:.3f}"))
    header = ("cut", "layers x hidden x intermediate x heads", "parameters", "removed layers")
    return "Cuts, each made from the one before", (*header, "training tokens", "perplexity"), rows


def _importance_lines(summary: RunSummary) -> list[str]:
    """The importance of the layers that each of several cuts was made from."""
    return [
        f"- importance of each layer before {markdown_text(cut.name)}: "
        + ", ".join(f"{score:.3g}" for score in cut.layer_importance)
        for cut in summary.cuts
    ]


def result_tables(
    evaluation: EvaluationRecord, exports: Mapping[str, ExportRecord], bench: Results | None
) -> list[Table]:
    """Title, header and rows of quality, exports and speed."""
    tables = [_quality(evaluation), _exports(exports)]
    return [*tables, _speed(bench)] if bench else tables


def closed_gap(evaluation: EvaluationRecord) -> float | None:
    """The share of the log-perplexity gap between its student and the teacher that distillation closed.

    None without distillation, or without a gap.
    """
    models = evaluation.models
    if "distilled" not in models:
        return None
    start = "reconstructed" if "reconstructed" in models else "pruned"
    teacher, before, distilled = (models[name].mean_nll for name in ("teacher", start, "distilled"))
    return (before - distilled) / (before - teacher) if before > teacher else None


def write_model_card(out_dir: Path, summary: RunSummary) -> None:
    """Write OUT/README.md."""
    write_text(out_dir / CARD_FILE, model_card(out_dir, summary))


def model_card(out_dir: Path, summary: RunSummary) -> str:
    """The text of OUT/README.md; every number comes from `summary`."""
    plan = summary.plan
    name = card_name(out_dir.absolute().name, summary.lineage)
    lines = [
        "---",
        front_matter(summary, name=name, base_model=public_name(plan.model), tags=_tags(summary)),
        "---",
        "",
        f"# {markdown_text(name)}",
        "",
        _origin(summary),
        "",
        _shape(plan.student.dims) + f" {markdown_text(plan.rule)}.",
        "",
        *_text_lines(plan),
        *_depth_lines(summary.prune),
        *_repair_lines(summary),
        *_importance_lines(summary),
        *_loss_lines(summary.distill),
        *preflight_lines(summary),
    ]
    for title, header, rows in tables_of(summary):
        lines += ["", f"## {markdown_text(title)}", "", *markdown_table(header, rows)]
    lines += ["", *place_lines(summary), "", *economics_lines(summary), "", *licence_lines(summary.lineage)]
    lines += ["", *_closing(summary)]
    return "\n".join(lines) + "\n"


def check_card(out_dir: Path) -> None:
    """Refuse a card that says something else than the run's records.

    A run may have been moved, and its teacher may be gone: names of models and texts are not compared.

    Raises:
        VerificationError: naming the first line that differs, or a record that cannot be used.
    """
    file = out_dir / CARD_FILE
    if not file.is_file():
        raise VerificationError(
            "the model card is missing",
            where=str(file),
            hint="repeat the command that made this run: it writes it",
        )
    summary = read_summary(out_dir)
    with fitting(out_dir):
        expected = _comparable(model_card(out_dir, summary))
    found = _comparable(file.read_text(encoding="utf-8", errors="replace"))
    for number in range(max(len(expected), len(found))):
        wanted, line = (lines[number] if number < len(lines) else None for lines in (expected, found))
        if wanted != line:
            raise VerificationError(
                "the model card says something else than the run's records",
                where=f"{file}, line {number + 1}",
                expected=wanted,
                found=line,
                hint="repeat the command that made this run: it writes the card again",
            )


def _comparable(card: str) -> list[str]:
    return [_NAMES.sub("", line) for line in card.splitlines()]


def _origin(summary: RunSummary) -> str:
    plan, distill = summary.plan, summary.distill
    parts = ["structured pruning"]
    parts += ["least squares"] if summary.reconstruct else []
    parts += [f"distillation on {distill.tokens:,} tokens"] if distill else []
    *first, last = parts
    made_by = f"{', '.join(first)} and {last}" if first else last
    return (
        f"A {plan.student.num_parameters:,}-parameter {plan.student.dims.model_type} model, made from "
        f"{markdown_code(public_name(plan.model))} ({plan.teacher.num_parameters:,} parameters) "
        f"by {made_by}."
    )


def _shape(student: Dims) -> str:
    return (
        f"Shape: hidden size {student.hidden_size}, intermediate size {student.intermediate_size}, "
        f"{student.num_hidden_layers} layers, {student.num_attention_heads} query and "
        f"{student.num_key_value_heads} key/value heads of {student.head_dim}."
    )


def _tags(summary: RunSummary) -> list[str]:
    tags = ["pruned"]
    if summary.distill:
        tags.append("distilled")
    if any(FORMATS[name].needs_fp8 for name in summary.exports):
        tags.append("fp8")
    return tags


def _text_lines(plan: Plan) -> list[str]:
    texts = plan.text
    used = {"calibration": texts.calibration, "training": texts.training, "evaluation": texts.evaluation}
    return [f"- {use} text: {markdown_text(text_name(source))}" for use, source in used.items()]


def _depth_lines(prune: PruneRecord | None) -> list[str]:
    """What it cost to remove layers that were chosen by that."""
    if prune is None or prune.depth is None:
        return []
    whole, without = prune.depth.whole, prune.depth.without
    figures = f"loss {whole.loss:.4f} to {without.loss:.4f}"
    if whole.accuracy is not None and without.accuracy is not None:
        figures += f", accuracy {whole.accuracy:.4f} to {without.accuracy:.4f}"
    removed = ", ".join(map(str, prune.removed_layers))
    line = f"- layers {removed} removed by {markdown_text(prune.depth.importance)}: {figures}"
    return [f"{line}, before repair and training (`{PLACES['prune']}/{PAGE_FILE}`)"]


def _repair_lines(summary: RunSummary) -> list[str]:
    """How many layers each repair changed: those whose error on held-out sequences fell."""
    return [
        f"- `{place}`: {counts.num_accepted} linear layers fitted again, "
        f"{counts.num_left} left as they were, since their error on held-out sequences did not fall"
        for place, counts in repairs_of(summary).items()
    ]


def _loss_lines(distill: DistillRecord | None) -> list[str]:
    if distill is None:
        return []
    said = [f"- loss: {markdown_text(distill.loss)}", f"- {markdown_text(distill.loss_rule)}"]
    return [*said, *forecast_lines(distill.forecast)]


def public_name(model: str) -> str:
    """A MODEL as others can find it: its hub id, or the name of a local directory or file.

    Another run's student is called by that run.
    """
    if model in PRESETS:
        return PRESETS[model].hub_id or model
    path = Path(model)
    if path.name == STUDENT:
        return f"{path.parent.name}/{path.name}"
    return path.name if path.expanduser().exists() else model


def text_name(source: str) -> str:
    """A plan's SOURCE without this machine's folders."""
    part, _, spec = source.rpartition(" of ")
    name = Path(spec).name if is_local(spec) else spec
    return f"{part} of {name}" if part else name


def _quality(evaluation: EvaluationRecord) -> Table:
    protocol = evaluation.protocol
    where = " on held-out text" if protocol.split == "held_out" else ""
    title = f"Perplexity{where} (window {protocol.window}, non-overlapping, no BOS, {protocol.compute_dtype})"
    rows = [
        (name, f"{found.num_parameters:,}", f"{found.perplexity:.3f}", f"{found.num_tokens:,}")
        for name, found in evaluation.models.items()
    ]
    return title, ("model", "parameters", "perplexity", "scored tokens"), rows


def _course(dynamic: DynamicBatchesRecord) -> Table:
    """The domains' shares over the training, thinned to so many lines."""
    stride = max(1, -(-len(dynamic.updates) // MAX_COURSE_ROWS))
    shown = dynamic.updates[::-1][::stride][::-1]
    rows = [(str(update.step), *(f"{share:.3f}" for share in update.weights)) for update in shown]
    return "Shares of the domains, by step", ("from step", *dynamic.domains), rows


def _exports(exports: Mapping[str, ExportRecord]) -> Table:
    rows = []
    for name, export in exports.items():
        logits = export.logits.get("all")
        figures = ("-", "-", "-", "-")
        if logits:
            figures = (
                f"{logits.max_relative:.1e}",
                f"{logits.kl:.1e}",
                f"{logits.top1_agreement:.4%}",
                f"{logits.num_positions:,}",
            )
        rows.append((name, export.status, *figures))
    header = ("export", "verified", "largest relative difference", "KL", "top-1 agreement", "positions")
    return "Exports against the student's logits", header, rows


def _speed(bench: Results) -> Table:
    rows: list[tuple[str, ...]] = []
    for comparison in bench.comparisons:
        pair = f"{comparison.candidate} : {comparison.baseline}"
        rows += [(pair, *_cell(cell)) for cell in comparison.cells]
    rows += [(entry.what, *["-"] * 5, f"not measured: {entry.reason}") for entry in bench.not_measured]
    wording = wording_of(bench)
    header = ("pair", "ISL/OSL", wording.size, "first tok/s", "second tok/s", "speed-up (95 %)", "status")
    few = f", indicative: {bench.protocol.num_series} series" if bench.protocol.is_indicative else ""
    return f"Output throughput {wording.of}{few}", header, rows


def _cell(cell: CellResult) -> tuple[str, ...]:
    where = (f"{cell.isl}/{cell.osl}", cell.batches)
    speedup = cell.speedup
    if speedup is None:
        return (*where, "-", "-", "-", f"{cell.status}: {cell.reason}")
    medians = [_median(arm) for arm in (cell.candidate, cell.baseline)]
    ratio = f"{speedup.ratio:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})"
    return (*where, *medians, ratio, f"{cell.status}, {speedup.num_pairs} pairs")


def _median(arm: ArmCell | None) -> str:
    measured = arm.metrics.get("output_tokens_per_s") if arm else None
    return f"{measured.median:.1f}" if isinstance(measured, Summary) else "-"


def _closing(summary: RunSummary) -> list[str]:
    closed = closed_gap(summary.evaluation)
    lines = []
    if closed is not None:
        lines.append(
            f"Distillation closed {closed:.0%} of the log-perplexity gap between its student and the teacher."
        )
    lines += [_engine_line(name, found.engine) for name, found in summary.exports.items() if found.engine]
    lines += [f"Warning: {markdown_text(warning)}" for warning in summary.warnings]
    versions = ", ".join(f"{name} {number}" for name, number in summary.versions.items())
    hardware = summary.hardware
    made_on = f"{markdown_text(hardware.cpu)} ({hardware.num_cpus} CPUs)"
    lines += ["", f"Made on {made_on} with {markdown_text(versions)}."]
    return lines


def _engine_line(name: str, engine: Engine) -> str:
    if engine.built:
        sparse = f"; with 2:4 weights it is {engine.sparsity.engine}" if engine.sparsity else ""
        builder = f"TensorRT-LLM {engine.tensorrt_llm}" if engine.tensorrt_llm else "TensorRT-Edge-LLM"
        return f"{name}: engine built with {markdown_text(f'{builder}{sparse}')}."
    place = f"in the container {markdown_text(engine.container)}" if engine.container else "on the device"
    script = markdown_code(f"exports/{name}/{engine.script}")
    return f"{name}: no engine yet ({markdown_text(str(engine.reason))}). {script} builds it {place}."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; what its cells hold is shown letter by letter."""
    return [markdown_row(header), "|" + "---|" * len(header), *map(markdown_row, rows)]
