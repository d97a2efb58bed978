"""`evaluation.json` of chat quality: how every model was asked, and what can be said of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from compressor.core.json_files import as_record, read_json_mapping
from compressor.core.records import Record
from compressor.data.sources import Split
from compressor.evaluation.record import SCHEMA, Executed
from compressor.evaluation.task_record import ITEMS, Paired

REPLIES_FILE = "replies.jsonl"


class ChatProtocol(Record):
    """How chat quality was measured: the first model's chat template, greedy replies.

    Attributes:
        template: sha256 of the chat template.
        end_tokens: Ids of the tokens that end a reply.
    """

    split: Split
    template: str
    decoding: Literal["greedy"] = "greedy"
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    compute_dtype: str


class Turns(Record):
    """What a model predicts where the assistant speaks; every token counts once.

    Attributes:
        mean_nll: Mean negative log-likelihood of the assistant's tokens, in nats; perplexity is exp of it.
        information: Nats by which what is predicted depends on what was read; of constant output 0.
        kl: Mean KL from the first model's distribution to this model's, in nats; None of the first.
        top1: Share of the tokens at which both rank the same token first.
        conversation_nll: The mean of every conversation.
    """

    perplexity: float
    mean_nll: float
    information: float
    kl: float | None = None
    top1: float | None = None
    conversation_nll: tuple[float, ...]


class Replies(Record):
    """Means over a model's replies, one to each conversation.

    Attributes:
        finished: Share that says something, does not end in a loop, and that the model ended itself.
        degenerate: Share that is empty, or ends with a phrase of two or more tokens three times in a row.
        tokens: Length, without the token that ends it.
        log_likelihood: Per token under the first model, without those that repeat four tokens; in nats.
        relevance: By how much that is more than under the first model behind the next conversation's prompt.
    """

    finished: float
    degenerate: float
    tokens: float
    log_likelihood: float
    relevance: float


class ChatModel(Record):
    """One model's chat quality.

    Attributes:
        executed: Of an exported FP8 checkpoint, how it was computed.
    """

    num_parameters: int
    turns: Turns
    replies: Replies
    executed: Executed | None = None


class ChatRecord(Record):
    """Chat quality of every model, the first being the baseline.

    Attributes:
        text: The conversations' source, how many were measured, and how many were passed over.
        conversation_tokens: The assistant's tokens in every conversation.
        paired: Every further model against the first, conversation by conversation: `task` is `turns` or
            `replies`, `metric` a field of it.
    """

    schema_id: Literal["compress-export/evaluation/1"] = Field(SCHEMA, alias="schema")
    metric: Literal["chat"] = "chat"
    protocol: ChatProtocol
    text: dict[str, JsonValue]
    conversation_tokens: tuple[int, ...]
    models: dict[str, ChatModel]
    paired: tuple[Paired, ...] = ()


class ChatItems(Record):
    """What a model's figures are means of, by conversation.

    Attributes:
        kl: Mean KL over the assistant's tokens; empty of the first model.
        top1: The same of the share of equal first choices.
        replies: Token ids, with the one that ends it.
        log_likelihood: See `Replies`.
        relevance: See `Replies`.
    """

    kl: tuple[float, ...] = ()
    top1: tuple[float, ...] = ()
    replies: tuple[tuple[int, ...], ...]
    log_likelihood: tuple[float, ...]
    relevance: tuple[float, ...]


def items_file(directory: Path, model: str) -> Path:
    """Where a model's items are kept."""
    return directory / ITEMS / f"{model}.json"


def read_items(directory: Path, model: str) -> ChatItems:
    """One model's items.

    Raises:
        VerificationError: for a file that cannot be read.
    """
    file, what = items_file(directory, model), "the replies of a model"
    return as_record(ChatItems, read_json_mapping(file, what=what), what=what, where=file)
