"""`evaluation.json`: how every model of a run was measured, and what came out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from compressor.core.records import Record
from compressor.data.sources import Split

EVALUATION_FILE = "evaluation.json"
SCHEMA: Literal["compress-export/evaluation/1"] = "compress-export/evaluation/1"


class EvaluationProtocol(Record):
    """How perplexity was measured: windows that do not overlap, without a BOS token."""

    window: int
    stride: int
    bos: bool = False
    split: Split
    compute_dtype: str


class Perplexity(Record):
    """A perplexity, exp of the mean negative log-likelihood in nats, and the tokens that it is over."""

    perplexity: float
    mean_nll: float
    num_tokens: int
    window: int
    num_windows: int


class MeasuredModel(Perplexity):
    """One model's perplexity."""

    num_parameters: int


class EvaluationRecord(Record):
    """Perplexity of every model, the first being the baseline."""

    schema_id: Literal["compress-export/evaluation/1"] = Field(SCHEMA, alias="schema")
    metric: Literal["perplexity"] = "perplexity"
    protocol: EvaluationProtocol
    text: dict[str, JsonValue]
    models: dict[str, MeasuredModel]
