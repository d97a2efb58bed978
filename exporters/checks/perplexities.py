"""Perplexities on a text: every figure is computed again from those of the windows that it is a mean of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from compressor.choices.formats import FORMATS
from compressor.core.errors import VerificationError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.evaluation.record import (
    EVALUATION_FILE,
    Agreement,
    EvaluationProtocol,
    EvaluationRecord,
    MeasuredModel,
)
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact
from exporters.checks.equality import expect_equal
from exporters.checks.record import check_close

_OF_WINDOWS = 1e-6  # figures of windows are kept with eight digits


def check_perplexities(directory: Path, artifact: ModelArtifact) -> dict[str, JsonValue]:
    """Refuse figures that those of the windows do not give, and an export computed as another format.

    An earlier version kept none of single windows; what it kept is compared as far as it goes.
    """
    file = directory / ARTIFACT_FILE
    held = read_json_mapping(directory / EVALUATION_FILE, what="the perplexities")
    expect_equal("two records of the perplexities differ", artifact.details, held, where=str(directory))
    record = as_record(EvaluationRecord, artifact.details, what="the record of perplexities", where=file)
    _check_compared(record, where=str(directory))
    for name, model in record.models.items():
        _check_model(model, record.protocol, where=f"{directory}: {name}")
    counts = {model.num_parameters for model in record.models.values()}
    if artifact.num_parameters not in counts:
        raise VerificationError(
            "the record counts parameters of none of its models",
            where=f"{file}: num_parameters",
            expected=sorted(counts),
            found=artifact.num_parameters,
        )
    executed = [model for model in record.models.values() if model.executed]
    return {"num_models": len(record.models), "num_executed_exports": len(executed)}


def _check_compared(record: EvaluationRecord, *, where: str) -> None:
    """Refuse models that were not all measured on the text's windows, and compared with the first."""
    numbers = {name: model.num_windows for name, model in record.models.items()}
    counted = record.text.get("windows")
    expect_equal(
        "models were measured on other windows", dict.fromkeys(numbers, counted), numbers, where=where
    )
    if any(map(_holds_windows, record.models.values())):
        _, *others = record.models
        compared = [name for name, model in record.models.items() if model.agreement is not None]
        expect_equal("the models that are compared with the first are others", others, compared, where=where)


def _holds_windows(model: MeasuredModel) -> bool:
    """Whether its figures are kept by window; `information` came with them."""
    return bool(model.window_nll) or model.information is not None


def _check_model(model: MeasuredModel, protocol: EvaluationProtocol, *, where: str) -> None:
    expect_equal("a model was measured on other windows", protocol.window, model.window, where=where)
    scored = model.num_windows * (model.window - 1)
    expect_equal("the scored tokens are others", scored, model.num_tokens, where=where)
    check_close(math.exp(model.mean_nll), model.perplexity, where=f"{where}, perplexity")
    if _holds_windows(model):
        _check_mean(model.window_nll, model.mean_nll, model.num_windows, where=f"{where}, mean_nll")
    if model.agreement is not None:
        _check_agreement(model.agreement, model, where=where)
    if model.executed is not None:
        row = FORMATS.get(model.executed.format)
        expected = row.precisions[0] if row else f"one of {', '.join(FORMATS)}"
        found = model.executed.precision if row else model.executed.format
        expect_equal("an export has another format or precision", expected, found, where=where)


def _check_agreement(agreement: Agreement, model: MeasuredModel, *, where: str) -> None:
    """The divergence is no less than 0, and agreeing positions are whole ones."""
    for metric in ("kl", "top1"):
        values, mean = getattr(agreement, f"window_{metric}"), getattr(agreement, metric)
        _check_mean(values, mean, model.num_windows, where=f"{where}, {metric}")
    positions = model.window - 1
    counts = [share * positions for share in agreement.window_top1]
    whole = all(abs(count - round(count)) < positions * _OF_WINDOWS for count in counts)
    if not whole or min(agreement.window_kl) < 0 or not 0 <= agreement.top1 <= 1:
        raise VerificationError(
            "an agreement is not one of these positions",
            where=where,
            expected=f"shares of {positions} positions, and divergences of at least 0",
            found=f"{agreement.window_top1}, {agreement.window_kl}",
        )


def _check_mean(values: Sequence[float], mean: float, number: int, *, where: str) -> None:
    expect_equal("windows are missing", number, len(values), where=where)
    found = sum(values) / number
    if not math.isclose(found, mean, rel_tol=_OF_WINDOWS, abs_tol=1e-9):
        raise VerificationError(
            "a recorded figure is not what its windows give", where=where, expected=found, found=mean
        )
