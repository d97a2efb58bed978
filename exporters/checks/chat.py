"""Chat quality: every figure is computed again from the replies' tokens and the figures of conversations."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.evaluation.chat_record import (
    REPLIES_FILE,
    ChatItems,
    ChatRecord,
    Replies,
    Turns,
    read_items,
)
from compressor.evaluation.task_record import Paired
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact
from exporters.checks.comparison import check_comparison, check_mean_difference
from exporters.checks.equality import expect_equal
from exporters.checks.record import check_close

# A phrase of two or more tokens three times at the end, of replies that are written as `<5><17>...`.
_LOOP = re.compile(r"((?:<\d+>){2,}?)\1\1$")
_Scores = dict[str, list[float]]


def check_chat(directory: Path, artifact: ModelArtifact) -> dict[str, JsonValue]:
    """Refuse figures that the replies and the conversations do not give."""
    file = directory / ARTIFACT_FILE
    record = as_record(ChatRecord, artifact.details, what="the record of chat quality", where=file)
    held = read_json_mapping(directory / "evaluation.json", what="chat quality")
    expect_equal("two records of chat quality differ", record.to_json(), held, where=str(directory))
    number = len(record.conversation_tokens)
    counted = record.text.get("conversations")
    expect_equal("the text holds another number of conversations", number, counted, where=str(file))
    scores: dict[str, _Scores] = {}
    for name, model in record.models.items():
        items, where = read_items(directory, name), f"{directory}: {name}"
        _check_items(items, record, model.turns, where=where)
        _check_turns(model.turns, items, record.conversation_tokens, where=where)
        scores[name] = _scores(items, record.protocol.end_tokens)
        for metric, values in scores[name].items():
            recorded = getattr(model.replies, metric)
            check_close(sum(values) / number, recorded, where=f"{where}, {metric}")
    _check_compared(record, where=str(directory))
    for found in record.paired:
        _check_pair(found, record, scores, where=f"{directory}: {found.model}, {found.metric}")
    _check_texts(directory / REPLIES_FILE, record)
    sizes = sorted({model.num_parameters for model in record.models.values()})
    if artifact.num_parameters not in sizes:
        raise VerificationError(
            "the record counts parameters of none of its models",
            where=f"{file}: num_parameters",
            expected=sizes,
            found=artifact.num_parameters,
        )
    return {"num_conversations": number, "num_replies": number * len(record.models)}


def _check_texts(file: Path, record: ChatRecord) -> None:
    """Refuse replies for people that are not one of every model to every conversation."""
    try:
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        found = [set(line["replies"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationError("the replies cannot be read", where=str(file), found=error) from error
    expected = [set(record.models)] * len(record.conversation_tokens)
    expect_equal("replies are missing", expected, found, where=str(file))


def _check_items(items: ChatItems, record: ChatRecord, turns: Turns, *, where: str) -> None:
    """Refuse lists of another length, impossible numbers, and replies that go on after their end."""
    number = len(record.conversation_tokens)
    compared = [items.kl, items.top1] if turns.kl is not None else []
    each = [items.replies, items.log_likelihood, items.relevance, turns.conversation_nll, *compared]
    expect_equal("conversations are missing", [number] * len(each), list(map(len, each)), where=where)
    ends, most = set(record.protocol.end_tokens), record.protocol.max_new_tokens
    sound = (
        min(record.conversation_tokens) > 0
        and all(0 < len(reply) <= most and ends.isdisjoint(reply[:-1]) for reply in items.replies)
        and max(items.log_likelihood) <= 0
        and all(divergence >= 0 for divergence in items.kl)
        and all(0 <= share <= 1 for share in items.top1)
    )
    if not sound:
        raise VerificationError("replies or their figures are beyond what they can be", where=where)


def _check_turns(turns: Turns, items: ChatItems, counts: tuple[int, ...], *, where: str) -> None:
    check_close(math.exp(turns.mean_nll), turns.perplexity, where=f"{where}, perplexity")
    pairs = {"mean_nll": (turns.conversation_nll, turns.mean_nll)}
    pairs |= {"kl": (items.kl, turns.kl)} if turns.kl is not None else {}
    pairs |= {"top1": (items.top1, turns.top1)} if turns.top1 is not None else {}
    for name, (values, recorded) in pairs.items():
        assert recorded is not None, "only what was compared is looked at"
        mean = float(np.average(values, weights=counts))
        check_close(mean, recorded, where=f"{where}, {name} of the assistant's turns")


def _scores(items: ChatItems, ends: tuple[int, ...]) -> _Scores:
    """By the name of a figure, one number for each reply."""
    finished, degenerate, lengths = [], [], []
    for reply in items.replies:
        ended = reply[-1] in ends
        text = "".join(f"<{token}>" for token in reply[: len(reply) - ended])
        broken = not text or _LOOP.search(text) is not None
        finished.append(float(ended and not broken))
        degenerate.append(float(broken))
        lengths.append(float(text.count("<")))
    figures = {"log_likelihood": list(items.log_likelihood), "relevance": list(items.relevance)}
    return {"finished": finished, "degenerate": degenerate, "tokens": lengths, **figures}


def _check_compared(record: ChatRecord, *, where: str) -> None:
    """Refuse a further model that is not compared with the first in everything, or a first that is."""
    first, *others = record.models
    compared = [
        name for name, model in record.models.items() if None not in (model.turns.kl, model.turns.top1)
    ]
    expect_equal("the models that are compared with the first are others", others, compared, where=where)
    metrics = [("turns", "mean_nll"), *(("replies", metric) for metric in Replies.model_fields)]
    expected = sorted((name, *metric) for name in others for metric in metrics)
    pairs = sorted((found.model, found.task, found.metric) for found in record.paired)
    expect_equal(f"comparisons with {first} are missing", expected, pairs, where=where)


def _check_pair(found: Paired, record: ChatRecord, scores: dict[str, _Scores], *, where: str) -> None:
    first = next(iter(record.models))
    if found.task == "replies":
        before, now = (scores[name][found.metric] for name in (first, found.model))
        check_comparison(found, before, now, where=where)
        return
    one, other = (record.models[name].turns for name in (first, found.model))
    check_close(other.mean_nll - one.mean_nll, found.difference, where=where)
    counts = np.asarray(record.conversation_tokens)
    expect_equal("the compared items are others", len(counts), found.num_items, where=where)
    # Of a ratio of sums, by conversation; about 0.
    losses = np.subtract(other.conversation_nll, one.conversation_nll)
    check_mean_difference(found, (losses - found.difference) * counts / counts.mean(), where=where)
