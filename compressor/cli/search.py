"""`compress-export search`: which shape of a size is best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compressor.cli.from_recipe import Call, from_recipe
from compressor.cli.session import Show, emit, work
from compressor.core.errors import UsageError
from compressor.recipe.forms import is_count

if TYPE_CHECKING:
    from compressor.api.search import SearchShare
    from compressor.runs.artifact import ModelArtifact

# What the short training of a shape does not read.
_OF_THE_RUN = (
    *("distill.tokens", "distill.correction", "distill.generate", "distill.teacher_logits"),
    *("distill.report_to", "prune.shape", "evaluate.exports"),
    *("evaluate.tasks", "evaluate.task_dir", "evaluate.limit", "evaluate.chat_template"),
    *("evaluate.task_batch_size", "evaluate.chat_data", "evaluate.chat_size", "evaluate.chat_max_tokens"),
)
_DEPLOYMENT = (
    *("export.formats", "export.tensorrt_llm.tp_size", "export.tensorrt_llm.pp_size"),
    *("sparsify.pattern", "sparsify.skip", "quantize.fp8"),
)


@from_recipe(
    *("target", "search", "prune", "calibration", "repair", "distill", "evaluate"),
    *("bench.isl_osl", "bench.batch_sizes", *_DEPLOYMENT),
    own="search",
    but=_OF_THE_RUN,
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Only do a share of the work, such as 1/4 for the first of four. When all are there, the same "
    "command without --shard compares them.",
)
def search(call: Call, show: Show, shard: str | None) -> None:
    """Try several shapes of MODEL at --target, and rank them.

    Each shape is pruned by the same importance scores, repaired, trained shortly on the same tokens and
    measured on held-out text. The best has the lowest perplexity among those that are predicted to be no more
    than 2 % slower than the shape that a run takes without a search. Options of the exports, of sparsity and
    FP8 only say which shapes are left out: nothing is exported.

    An interrupted search goes on where it was. `compress-export run --search N` does the same before pruning.
    """
    from compressor import api

    share = parse_shard(shard) if shard is not None else None
    with work(show, call.recipe.device) as console:
        execution = replace(call.execution, console=console)
        made = api.search(call.recipe, call.out_dir or Path(), shard=share, execution=execution)
    if isinstance(made, api.SearchShare):
        emit({"schema": "compress-export/search-share/1", **made.to_json()}, show, _share_text(made))
    else:
        emit(made.details, show, _text(made))


def parse_shard(text: str) -> tuple[int, int]:
    """`1/4` as the first of four shares.

    Raises:
        UsageError: for anything but two numbers, the first not above the second.
    """
    first, _, second = text.partition("/")
    if not (is_count(first) and is_count(second)) or not 1 <= int(first) <= int(second):
        raise UsageError(
            "this is not a share of the work",
            where="--shard",
            expected="I/N with I from 1 to N",
            found=text[:40],
            hint="write it like --shard 1/4, the first of four",
        )
    return int(first), int(second)


def _share_text(share: SearchShare) -> str:
    state = f"{len(share.done)} shapes tried, {len(share.left)} left"
    rest = ", ".join(share.left) or "none; the same command without --shard compares them"
    return f"{state}: {rest}"


def _text(made: ModelArtifact) -> str:
    from compressor.cli.render import table
    from compressor.models.dims import PRUNABLE_FIELDS
    from compressor.search.record import SEARCH_FILE, SearchRecord, rows_of

    record = SearchRecord.model_validate(made.details)
    title, header, rows = rows_of(record)
    shape = ",".join(f"{name}={getattr(record.winner.shape, name)}" for name in PRUNABLE_FIELDS)
    lines = [
        title,
        table(header, rows),
        f"{record.winner.name}: {record.reason}",
        f"take it   compress-export run MODEL --shape {shape}",
        f"figures   {made.path / SEARCH_FILE}",
    ]
    return "\n".join(lines)
