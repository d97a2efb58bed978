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


class Agreement(Record):
    """How far a model's next-token predictions are from the first model's, over the same positions.

    Attributes:
        kl: Mean KL from the first model's distribution to this model's, in nats.
        top1: Share of positions at which both rank the same token first.
        margin: Mean log-probability of the first model's choice over that of the best other token, in nats.
        window_kl: The mean KL of every window.
        window_top1: The share of every window.
    """

    kl: float
    top1: float
    margin: float
    window_kl: tuple[float, ...]
    window_top1: tuple[float, ...]


class Perplexity(Record):
    """A perplexity, exp of the mean negative log-likelihood in nats, and the tokens that it is over.

    Attributes:
        window_nll: The mean negative log-likelihood of every window.
        information: Nats by which what is predicted depends on what was read; of constant output 0.
        agreement: With the first model; None of that model itself.
    """

    perplexity: float
    mean_nll: float
    num_tokens: int
    window: int
    num_windows: int
    window_nll: tuple[float, ...] = ()
    information: float | None = None
    agreement: Agreement | None = None


class Executed(Record):
    """What computed an export, or the FP8 checkpoint of a quantised model, as it is stored.

    Attributes:
        format: The export's, such as `onnx-int4`.
        precision: Of its weights.
        runtime: The program and its version, such as `onnxruntime 1.31.1`.
        notes: Where its numbers or operators were computed otherwise than by default.
    """

    format: str
    precision: str
    runtime: str
    notes: tuple[str, ...] = ()


class MeasuredModel(Perplexity):
    """One model's perplexity.

    Attributes:
        executed: Of what is stored in a format of its own; None of a model that transformers computed in the
            protocol's dtype.
    """

    num_parameters: int
    executed: Executed | None = None


class EvaluationRecord(Record):
    """Perplexity of every model, the first being the baseline."""

    schema_id: Literal["compress-export/evaluation/1"] = Field(SCHEMA, alias="schema")
    metric: Literal["perplexity"] = "perplexity"
    protocol: EvaluationProtocol
    text: dict[str, JsonValue]
    models: dict[str, MeasuredModel]
