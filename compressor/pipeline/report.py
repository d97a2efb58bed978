"""The end of a run in words: tables for the terminal, and the model card, both from recorded results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from compressor.choices.formats import FORMATS
from compressor.core.escaping import markdown_code, markdown_row, markdown_text
from compressor.data.sources import is_local
from compressor.models.presets import PRESETS
from compressor.runs.artifact import write_text
from compressor.runs.manifest import STUDENT

CARD_FILE = "README.md"
MAX_COURSE_ROWS = 12
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def result_tables(summary: dict[str, Any]) -> list[Table]:
    """Title, header and rows of every result a run has."""
    tables = [_quality(summary), _exports(summary["exports"])]
    if dynamic := (summary.get("distill") or {}).get("dynamic_batches"):
        tables.append(_course(dynamic))
    if summary["bench"]:
        tables.append(_speed(summary["bench"]))
    return tables


def closed_gap(evaluation: dict[str, Any]) -> float | None:
    """The share of the log-perplexity gap between pruned student and teacher that distillation closed.

    None without distillation, or without a gap.
    """
    models = evaluation["models"]
    if "distilled" not in models:
        return None
    teacher, pruned, distilled = (models[name]["mean_nll"] for name in ("teacher", "pruned", "distilled"))
    return float((pruned - distilled) / (pruned - teacher)) if pruned > teacher else None


def write_model_card(out_dir: Path, summary: dict[str, Any]) -> None:
    """Write OUT/README.md."""
    write_text(out_dir / CARD_FILE, model_card(out_dir, summary))


def model_card(out_dir: Path, summary: dict[str, Any]) -> str:
    """The text of OUT/README.md; every number comes from `summary`."""
    plan, student = summary["plan"], summary["plan"]["student"]
    lines = [
        "---",
        _front_matter("base_model", _public_name(plan["model"])),
        "library_name: transformers",
        f"tags: [{', '.join(_tags(summary))}]",
        "---",
        "",
        f"# {markdown_text(out_dir.absolute().name)}",
        "",
        _origin(summary),
        "",
        _shape(student) + f" {markdown_text(plan['rule'])}.",
        "",
        *_text_lines(plan),
        *_loss_lines(summary["distill"]),
    ]
    for title, header, rows in result_tables(summary):
        lines += ["", f"## {title}", "", *markdown_table(header, rows)]
    lines += ["", *_closing(summary)]
    return "\n".join(lines) + "\n"


def _front_matter(name: str, value: str) -> str:
    """A field of the YAML at the card's top, in quotes where its value needs them."""
    return yaml.safe_dump({name: value}, width=math.inf, allow_unicode=True).rstrip("\n")


def _origin(summary: dict[str, Any]) -> str:
    plan, distill = summary["plan"], summary["distill"]
    training = f" and distillation on {distill['tokens']:,} tokens" if distill else ""
    return (
        f"A {plan['student']['num_parameters']:,}-parameter {plan['student']['model_type']} model, made from "
        f"{markdown_code(_public_name(plan['model']))} ({plan['teacher']['num_parameters']:,} parameters) "
        f"by structured pruning{training}."
    )


def _shape(student: dict[str, Any]) -> str:
    return (
        f"Shape: hidden size {student['hidden_size']}, intermediate size {student['intermediate_size']}, "
        f"{student['num_hidden_layers']} layers, {student['num_attention_heads']} query and "
        f"{student['num_key_value_heads']} key/value heads of {student['head_dim']}."
    )


def _tags(summary: dict[str, Any]) -> list[str]:
    tags = ["pruned"]
    if summary["distill"]:
        tags.append("distilled")
    if any(FORMATS[name].needs_fp8 for name in summary["exports"]):
        tags.append("fp8")
    return tags


def _text_lines(plan: dict[str, Any]) -> list[str]:
    return [f"- {use} text: {markdown_text(_text_name(source))}" for use, source in plan["text"].items()]


def _loss_lines(distill: dict[str, Any] | None) -> list[str]:
    return [f"- loss: {distill['loss']}", f"- {distill['loss_rule']}"] if distill else []


def _public_name(model: str) -> str:
    """A MODEL as others can find it: its hub id, or the name of a local directory or file.

    Another run's student is called by that run.
    """
    if model in PRESETS:
        return PRESETS[model].hub_id or model
    path = Path(model)
    if path.name == STUDENT:
        return f"{path.parent.name}/{path.name}"
    return path.name if path.expanduser().exists() else model


def _text_name(source: str) -> str:
    """A plan's SOURCE without this machine's folders."""
    part, _, spec = source.rpartition(" of ")
    name = Path(spec).name if is_local(spec) else spec
    return f"{part} of {name}" if part else name


def _quality(summary: dict[str, Any]) -> Table:
    evaluation = summary["evaluation"]
    protocol = evaluation["protocol"]
    title = (
        f"Perplexity on held-out text (window {protocol['window']}, non-overlapping, no BOS, "
        f"{protocol['compute_dtype']})"
        if protocol["split"] == "held_out"
        else f"Perplexity (window {protocol['window']}, non-overlapping, no BOS, {protocol['compute_dtype']})"
    )
    rows = [
        (name, f"{entry['num_parameters']:,}", f"{entry['perplexity']:.3f}", f"{entry['num_tokens']:,}")
        for name, entry in evaluation["models"].items()
    ]
    return title, ("model", "parameters", "perplexity", "scored tokens"), rows


def _course(dynamic: dict[str, Any]) -> Table:
    """The weights' course, thinned to so many lines."""
    updates = dynamic["updates"]
    stride = max(1, -(-len(updates) // MAX_COURSE_ROWS))
    shown = updates[::-1][::stride][::-1]
    rows = [(str(update["step"]), *(f"{share:.3f}" for share in update["weights"])) for update in shown]
    return "Shares of the domains, by step", ("from step", *dynamic["domains"]), rows


def _exports(exports: dict[str, Any]) -> Table:
    rows = []
    for name, details in exports.items():
        logits = details["logits"].get("all")
        if logits:
            figures = (
                f"{logits['max_relative']:.1e}",
                f"{logits['kl']:.1e}",
                f"{logits['top1_agreement']:.4%}",
                f"{logits['num_positions']:,}",
            )
        else:
            figures = ("-", "-", "-", "-")
        rows.append((name, details["status"], *figures))
    header = ("export", "verified", "largest relative difference", "KL", "top-1 agreement", "positions")
    return "Exports against the student's logits", header, rows


def _speed(bench: dict[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for comparison in bench["comparisons"]:
        for cell in comparison["cells"]:
            where = (f"{cell['isl']}/{cell['osl']}", batches_of(cell))
            pair = f"{comparison['candidate']} : {comparison['baseline']}"
            speedup = cell["speedup"]
            if speedup is None:
                rows.append((pair, *where, "-", "-", "-", f"{cell['status']}: {cell['reason']}"))
                continue
            medians = [
                f"{cell[arm]['metrics']['output_tokens_per_s']['median']:.1f}"
                for arm in ("candidate", "baseline")
            ]
            ratio = f"{speedup['ratio']:.2f}x ({speedup['low']:.2f} to {speedup['high']:.2f})"
            rows.append((pair, *where, *medians, ratio, f"{cell['status']}, {speedup['num_pairs']} pairs"))
    rows += [
        (entry["what"], *["-"] * 5, f"not measured: {entry['reason']}") for entry in bench["not_measured"]
    ]
    header = ("pair", "ISL/OSL", "batch", "student tok/s", "teacher tok/s", "speed-up (95 %)", "status")
    return "Static-batch output throughput, student against teacher", header, rows


def batches_of(cell: dict[str, Any]) -> str:
    """`8`, or `32:64` with a batch size per model."""
    own = cell.get("candidate_batch_size")
    return str(cell["batch_size"]) if own is None else f"{cell['batch_size']}:{own}"


def _closing(summary: dict[str, Any]) -> list[str]:
    closed = closed_gap(summary["evaluation"])
    lines = []
    if closed is not None:
        lines.append(
            f"Distillation closed {closed:.0%} of the log-perplexity gap between pruned student and teacher."
        )
    lines += [
        _engine_line(name, found["engine"]) for name, found in summary["exports"].items() if "engine" in found
    ]
    lines += [f"Warning: {markdown_text(warning)}" for warning in summary["warnings"]]
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    hardware = summary["hardware"]
    lines += ["", f"Made on {hardware['cpu']} ({hardware['num_cpus']} CPUs) with {versions}."]
    return lines


def _engine_line(name: str, engine: dict[str, Any]) -> str:
    if engine["built"]:
        tactics = engine.get("sparsity")
        sparse = f"; with 2:4 weights it is {tactics['engine']}" if tactics else ""
        return f"{name}: engine built with TensorRT-LLM {engine['tensorrt_llm']}{sparse}."
    return (
        f"{name}: checkpoint only, no engine ({engine['reason']}). `exports/{name}/{engine['script']}` "
        f"builds it in the container {engine['container']}."
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; what its cells hold is shown letter by letter."""
    return [markdown_row(header), "|" + "---|" * len(header), *map(markdown_row, rows)]
