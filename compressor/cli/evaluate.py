"""`compress-export evaluate`: perplexity and agreement on a text, tasks of lm-eval, or chat quality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from compressor.cli.from_recipe import Call, from_recipe
from compressor.cli.search import parse_shard
from compressor.cli.session import Show, emit, work
from compressor.core.errors import UsageError

_OF_TEXT = frozenset({"evaluate.seq_len", "evaluate.size"})


@from_recipe("evaluate", own="evaluate", but=("evaluate.exports",), model="MODEL...")
@click.option(
    "--shard",
    metavar="I/N",
    help="Measure only this share of --tasks, such as 1/4 for the first of four; the same command without "
    "--shard measures what is left and compares the models.",
)
def evaluate(call: Call, models: tuple[str, ...], shard: str | None, show: Show) -> None:
    """Measure the perplexity of MODELs on --data, their scores in --tasks, or their replies to --chat-data.

    The first MODEL is the baseline: on a text the others are compared with it position by position, in tasks
    item by item, in chat conversation by conversation. If any MODEL was trained or calibrated on the text,
    all are evaluated on its held-out part. On a text, a MODEL may be the directory of an ONNX export: its
    graph is run on the CPU as it is stored.

    For example:

    \b
      compress-export evaluate teacher student --data text.jsonl -o quality
      compress-export evaluate teacher student --tasks published,ifeval -o scores
      compress-export evaluate teacher student --chat-data chats.jsonl -o chat
    """
    from compressor import api
    from compressor.cli.render import evaluation_text

    settings = call.recipe.evaluate
    if [settings.data is not None, bool(settings.tasks), settings.chat_data is not None].count(True) != 1:
        raise UsageError(
            "evaluate measures either perplexity, or tasks, or chat",
            hint="give one of --data SOURCE, --tasks NAME,... and --chat-data SOURCE",
        )
    unread = [flag for name, flag in call.flags.items() if name in _OF_TEXT]
    if unread and settings.data is None:
        raise UsageError(
            "only perplexity is measured on sequences of a text, so these options have no effect",
            where=", ".join(unread),
            hint="leave them out; the number of conversations is --chat-size, and of a task's items --limit",
        )
    if shard is not None and not settings.tasks:
        raise UsageError(
            "only tasks are measured in shares", where="--shard", hint="leave it out, or give --tasks"
        )
    share = parse_shard(shard) if shard is not None else None
    out_dir = call.out_dir or Path()
    with work(show, call.recipe.device) as console:
        execution = replace(call.execution, console=console)
        if settings.tasks:
            made = api.evaluate_tasks(models, out_dir, settings=settings, shard=share, execution=execution)
        elif settings.chat_data is not None:
            made = api.evaluate_chat(models, out_dir, settings=settings, execution=execution)
        else:
            made = api.evaluate(models, out_dir, settings=settings, execution=execution)
    if isinstance(made, api.TaskShare):
        schema = {"schema": "compress-export/task-share/1"}
        left = f"{made.left} left" if made.left else "none left; the same command without --shard compares"
        emit({**schema, **made.to_json()}, show, f"{made.done} units of items measured, {left}")
        return
    emit(made.details, show, evaluation_text(made.details))
