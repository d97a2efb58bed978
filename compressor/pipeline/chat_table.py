"""Chat quality as tables: every model's figures, and each further model against the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compressor.evaluation.chat_record import ChatModel, ChatRecord
from compressor.evaluation.task_record import Paired

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
_HEADER = (
    *("model", "perplexity of the assistant's turns", "KL", "top-1", "finished replies", "degenerate"),
    *("tokens per reply", "log-likelihood under the first", "relevance"),
)
# What a figure is called, and how a number of it is written.
_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "mean_nll": ("loss in the assistant's turns [nats]", "{:+.4f}".format),
    "finished": ("finished replies [points]", lambda share: f"{100 * share:+.1f}"),
    "degenerate": ("degenerate replies [points]", lambda share: f"{100 * share:+.1f}"),
    "tokens": ("tokens per reply", "{:+.1f}".format),
    "log_likelihood": ("log-likelihood under the first [nats per token]", "{:+.3f}".format),
    "relevance": ("relevance [nats per token]", "{:+.3f}".format),
}


def chat_tables(record: ChatRecord) -> list[Table]:
    """Title, header and rows of the figures, and of the differences where there are several models."""
    protocol = record.protocol
    part = "held-out conversations" if protocol.split == "held_out" else "conversations"
    number = len(record.conversation_tokens)
    title = (
        f"Chat ({number:,} {part}, {sum(record.conversation_tokens):,} tokens of the assistant; greedy "
        f"replies of at most {protocol.max_new_tokens} tokens; {protocol.compute_dtype})"
    )
    tables: list[Table] = [(title, _HEADER, [_row(name, model) for name, model in record.models.items()])]
    if record.paired:
        header = ("model", "of", "against the first (95 %)", "test")
        rows = [_difference(found) for found in record.paired]
        tables.append(("Chat against the first model, conversation by conversation", header, rows))
    return tables


def _row(name: str, model: ChatModel) -> tuple[str, ...]:
    turns, replies = model.turns, model.replies
    return (
        name,
        f"{turns.perplexity:.3f}",
        "-" if turns.kl is None else f"{turns.kl:.4f}",
        "-" if turns.top1 is None else f"{turns.top1:.2%}",
        f"{replies.finished:.1%}",
        f"{replies.degenerate:.1%}",
        f"{replies.tokens:.1f}",
        f"{replies.log_likelihood:.3f}",
        f"{replies.relevance:.3f}",
    )


def _difference(found: Paired) -> tuple[str, ...]:
    label, shown = _FIGURES[found.metric]
    difference, low, high = map(shown, (found.difference, found.low, found.high))
    return found.model, label, f"{difference} ({low} to {high})", found.test_of("conversation")
