"""The stage that measures chat quality: what models predict where the assistant speaks, and what they reply.

One model is in memory at a time. The first is loaded again at the end, to read what all of them replied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.core.errors import UsageError
from compressor.data.chats import Chat, Chats, read_chats
from compressor.data.sources import Split, describe_source, source_fingerprint
from compressor.data.template import template_of
from compressor.evaluation.chat_figures import pairs_of, replies_of, turns_of
from compressor.evaluation.chat_record import (
    REPLIES_FILE,
    ChatItems,
    ChatModel,
    ChatProtocol,
    ChatRecord,
    items_file,
)
from compressor.evaluation.evaluate_stage import (
    load_evaluated,
    require_evaluated_memory,
    require_same_tokenizer,
)
from compressor.evaluation.exported import executed_fp8
from compressor.evaluation.predictions import Baseline, Predictions, predict
from compressor.evaluation.record import EVALUATION_FILE
from compressor.evaluation.replies import greedy_reply, log_likelihoods, new_tokens
from compressor.evaluation.task_record import ITEMS
from compressor.models.end_tokens import end_tokens, own_end_tokens
from compressor.models.positions import num_positions
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.evaluation import Evaluate
from compressor.recipe.option import Section
from compressor.runs.artifact import ModelArtifact, write_json, write_text
from compressor.runs.stage import Stage, StageContext, StageResult

Reply = tuple[int, ...]


class ChatStageConfig(Section):
    """What to measure on.

    Attributes:
        data: SOURCE of conversations.
        split: Which part of it is read: the held-out one where training or calibration read the rest.
        size: Number of conversations.
        max_new_tokens: Tokens after which a reply is cut.
    """

    data: str
    split: Split = "all"
    size: int
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What one model predicted and replied."""

    predicted: Predictions
    replies: list[Reply]


def chat_config(settings: Evaluate, split: Split) -> ChatStageConfig:
    """A recipe's choices as the stage's configuration; there is a text."""
    assert settings.chat_data is not None, "chat quality was asked for"
    return ChatStageConfig(
        data=settings.chat_data,
        split=split,
        size=settings.chat_size,
        max_new_tokens=settings.chat_max_tokens,
    )


def require_chats(config: ChatStageConfig, model: Path, tokenizer: Any) -> Chats:
    """The conversations, as the model in a directory reads them.

    Raises:
        UsageError: for a model without a chat template, or a text that holds too few conversations.
        UnsupportedError: for a template by which the assistant's turns cannot be told.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "this model has no chat template, so there is no chat to measure",
            where=str(model),
            expected="chat_template.jinja, or chat_template in tokenizer_config.json",
            hint="name an instruct model, put its chat_template.jinja beside the tokenizer, or measure "
            "perplexity on text with --data and skills with --tasks",
        )
    return read_chats(
        config.data,
        config.split,
        tokenizer,
        size=config.size,
        max_new_tokens=config.max_new_tokens,
        context_length=num_positions(model),
    )


def run(config: ChatStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Measure `context.others`, the first being the baseline.

    Writes `evaluation.json`, the replies as token ids with their figures by model, and as text side by side.
    """
    baseline = next(iter(context.others.values()))
    tokenizer = load_tokenizer(baseline.path, trust_remote_code=context.trust_remote_code)
    read = require_chats(config, baseline.path, tokenizer)
    chats = read.chats
    _warn(config, read, context)
    for artifact in context.others.values():
        _require_same_template(artifact, tokenizer, context)
    ends = _end_tokens(baseline.path, tokenizer, chats)
    measured = _measure(chats, ends, config, context)
    items = _items(chats, measured, context)
    record = _record(config, read, measured, items, ends, tokenizer, context)
    (out_dir / ITEMS).mkdir()
    for name, found in items.items():
        write_json(items_file(out_dir, name), found.to_json())
    write_text(out_dir / REPLIES_FILE, _side_by_side(chats, measured, tokenizer))
    write_json(out_dir / EVALUATION_FILE, record.to_json())
    return StageResult(num_parameters=source.num_parameters, details=record.to_json())


def _warn(config: ChatStageConfig, read: Chats, context: StageContext) -> None:
    if read.num_passed_over:
        context.console.warn(
            f"{read.num_passed_over} conversations are passed over: without a question or an answer, or "
            "longer than the model's context"
        )
    if len(read.chats) < config.size:
        context.console.warn(
            f"the text holds {len(read.chats)} conversations to measure on, not {config.size}"
        )


def _require_same_template(artifact: ModelArtifact, tokenizer: Any, context: StageContext) -> None:
    """Refuse a model that reads other tokens, or has another form of a conversation.

    Raises:
        UsageError: naming the model.
    """
    require_same_tokenizer(artifact, tokenizer, context)
    own = load_tokenizer(artifact.path, trust_remote_code=context.trust_remote_code)
    if getattr(own, "chat_template", None) != tokenizer.chat_template:
        raise UsageError(
            "this model has another chat template than the first, so their turns cannot be compared",
            where=str(artifact.path),
            hint="evaluate each alone, or give both the same chat_template.jinja",
        )


def _end_tokens(baseline: Path, tokenizer: Any, chats: Sequence[Chat]) -> tuple[int, ...]:
    """The checkpoint's own, the tokenizer's, and what the template ends the assistant's last turn with."""
    added = set(tokenizer.get_added_vocab().values())
    closing = added.intersection(_last_token(chat, tokenizer) for chat in chats)
    return tuple(sorted({*end_tokens(own_end_tokens(baseline), tokenizer), *closing}))


def _last_token(chat: Chat, tokenizer: Any) -> int | None:
    """The last of the assistant's tokens that is no white space, which templates may count as its turn's."""
    said = reversed(chat.ids[chat.mask.nonzero()].tolist())
    return next((int(token) for token in said if tokenizer.decode([token]).strip()), None)


def _measure(
    chats: Sequence[Chat], ends: Sequence[int], config: ChatStageConfig, context: StageContext
) -> dict[str, _Measured]:
    measured: dict[str, _Measured] = {}
    first: Baseline | None = None
    ids, masks = [chat.ids for chat in chats], [chat.mask for chat in chats]
    for name, artifact in context.others.items():
        model = load_evaluated(artifact, context)
        with context.console.progress(f"chat of {name}", 2 * len(chats)) as tick:
            predicted, own = predict(model, ids, masks=masks, baseline=first, on_window=tick)
            replies = []
            for chat in chats:
                replies.append(
                    greedy_reply(model, chat.prompt, max_new_tokens=config.max_new_tokens, ends=ends)
                )
                tick()
        del model
        first = first or own
        measured[name] = _Measured(predicted=predicted, replies=replies)
    return measured


def _items(
    chats: Sequence[Chat], measured: Mapping[str, _Measured], context: StageContext
) -> dict[str, ChatItems]:
    """What the first model says of all replies, behind their own prompt and behind the next one's."""
    judge = load_evaluated(next(iter(context.others.values())), context)
    found = {}
    with context.console.progress("likelihood of replies", len(measured) * len(chats)) as tick:
        for name, one in measured.items():
            own, relevance = [], []
            for number, (chat, reply) in enumerate(zip(chats, one.replies, strict=True)):
                other = chats[(number + 1) % len(chats)]
                counted = new_tokens(reply)
                likely, elsewhere = (
                    log_likelihoods(judge, prompt, reply)[counted].mean().item()
                    for prompt in (chat.prompt, other.prompt)
                )
                own.append(likely)
                relevance.append(likely - elsewhere)
                tick()
            found[name] = ChatItems(
                kl=tuple(one.predicted.kl),
                top1=tuple(one.predicted.top1),
                replies=tuple(one.replies),
                log_likelihood=tuple(own),
                relevance=tuple(relevance),
            )
    return found


def _record(
    config: ChatStageConfig,
    read: Chats,
    measured: Mapping[str, _Measured],
    items: Mapping[str, ChatItems],
    ends: tuple[int, ...],
    tokenizer: Any,
    context: StageContext,
) -> ChatRecord:
    counts = tuple(int(chat.mask[1:].sum()) for chat in read.chats)
    models = {
        name: ChatModel(
            num_parameters=context.others[name].num_parameters,
            turns=turns_of(
                one.predicted.nll, counts, items[name], information=one.predicted.information, model=name
            ),
            replies=replies_of(items[name], ends),
            executed=executed_fp8(context.others[name]),
        )
        for name, one in measured.items()
    }
    return ChatRecord(
        protocol=ChatProtocol(
            split=config.split,
            template=hashlib.sha256(template_of(tokenizer, tools=None).encode()).hexdigest(),
            max_new_tokens=config.max_new_tokens,
            end_tokens=ends,
            compute_dtype=context.dtype,
        ),
        text={
            **describe_source(config.data),
            "conversations": len(read.chats),
            "passed_over": read.num_passed_over,
        },
        conversation_tokens=counts,
        models=models,
        paired=pairs_of(models, items, counts, ends),
    )


def _side_by_side(chats: Sequence[Chat], measured: Mapping[str, _Measured], tokenizer: Any) -> str:
    """A line of JSON for each conversation: its prompt, and what every model replied."""
    lines = [
        {
            "prompt": tokenizer.decode(chat.prompt.tolist()),
            "replies": {name: tokenizer.decode(list(one.replies[number])) for name, one in measured.items()},
        }
        for number, chat in enumerate(chats)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


CHAT: Stage[ChatStageConfig] = Stage(
    name="evaluate-chat",
    run=run,
    data=lambda config: (config.data,),
    fingerprint=source_fingerprint,
    require_memory=require_evaluated_memory,
)
