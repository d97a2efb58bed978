"""Perplexity of models on a text, and their agreement with the first one, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.evaluation.record import EvaluationRecord, MeasuredModel


def perplexity_table(record: EvaluationRecord) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    """Title, header and rows; what computed them has a column where one of them is an export."""
    protocol = record.protocol
    part = "the text's held-out part" if protocol.split == "held_out" else "the text from its start"
    title = f"{part}, window {protocol.window}, non-overlapping, no BOS, {protocol.compute_dtype}"
    has_exports = any(model.executed for model in record.models.values())
    header = ("model", "parameters", "perplexity", "KL to the first", "same first choice")
    rows = [
        (
            name,
            f"{model.num_parameters:,}",
            f"{model.perplexity:.3f}",
            *_agreement(model),
            *([_computed_by(model, protocol.compute_dtype)] if has_exports else []),
        )
        for name, model in record.models.items()
    ]
    return title, (*header, "computed by") if has_exports else header, rows


def _agreement(model: MeasuredModel) -> tuple[str, str]:
    found = model.agreement
    return (f"{found.kl:.2g}", f"{found.top1:.2%}") if found else ("-", "-")


def _computed_by(model: MeasuredModel, dtype: str) -> str:
    executed = model.executed
    if executed is None:
        return f"transformers in {dtype}"
    notes = "".join(f", {note}" for note in executed.notes)
    return f"{executed.runtime}, {executed.precision}{notes}"
