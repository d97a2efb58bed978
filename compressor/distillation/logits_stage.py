"""The logits stage: run a teacher over the training windows and keep its top-k tokens on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from compressor.core.console import Tick
from compressor.core.errors import UsageError
from compressor.data.packing import Window
from compressor.data.sources import source_fingerprint
from compressor.distillation.chunked import CHUNK_VALUES
from compressor.distillation.losses import wide
from compressor.distillation.states import Body
from compressor.distillation.stored_logits import (
    LogitsHeader,
    TopTokens,
    digest_of,
    is_whole,
    shard_name,
    write_index,
    write_shard,
)
from compressor.distillation.training import TOKENS, load, open_training_stream, schedule, training_content
from compressor.models.memory import require_model_memory
from compressor.recipe.recipe import Distill
from compressor.runs.artifact import ModelArtifact, sha256_of_file
from compressor.runs.stage import Stage, StageContext, StageResult

STORED_TOP_K = 1024
SHARD_VALUES = 1 << 26


def run(config: Distill, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Store the logits of the teacher `source` for every window that training will see.

    A killed run continues with the first shard that is not whole, and ends in the same bytes.

    Raises:
        UsageError: when the text or the budget does not fill one window.
    """
    plan = schedule(config, seed=context.seed, device=context.device, dtype=context.dtype)
    stream = open_training_stream(config, plan, config.mixture(), source, out_dir, context)
    windows: ConcatDataset[Window] = ConcatDataset([domain.windows for domain in stream.domains])  # type: ignore[misc]
    distinct: dict[str, int] = {}
    for index in range(len(windows)):
        distinct.setdefault(digest_of(windows[index]["input_ids"]), index)
    teacher = load(source, context.dtype, context)
    vocab_size = teacher.config.vocab_size
    header = LogitsHeader(
        top_k=min(config.top_k or STORED_TOP_K, vocab_size),
        seq_len=config.context_length,
        vocab_size=vocab_size,
        tokenizer=tokenizer_fingerprint(source.path),
        teacher=source.fingerprint,
        isolates_documents=config.intra_document_masking,
    )
    per_shard = max(1, SHARD_VALUES // (header.seq_len * header.top_k))
    with context.console.progress("storing logits", len(distinct)) as tick:
        num_bytes = write_logits(
            Body(teacher),
            windows,
            distinct,
            out_dir,
            header,
            windows_per_shard=per_shard,
            micro_batch_size=config.micro_batch_size,
            tick=tick,
        )
    details = {"top_k": header.top_k, "windows": len(distinct), "bytes": num_bytes}
    return StageResult(num_parameters=source.num_parameters, details=details, scratch=(TOKENS,))


def write_logits(
    teacher: Body,
    windows: ConcatDataset[Window],
    distinct: dict[str, int],
    out_dir: Path,
    header: LogitsHeader,
    *,
    windows_per_shard: int,
    micro_batch_size: int,
    tick: Tick,
) -> int:
    """Write the shards that are not there yet, then the index; returns the bytes of all shards.

    `distinct` says which of the windows to store, by digest, in the order of the shards. A forward pass of
    the teacher, in evaluation mode, takes up to `micro_batch_size` windows of a shard.
    """
    digests = list(distinct)
    shards: list[tuple[str, list[str]]] = []
    for number, start in enumerate(range(0, len(digests), windows_per_shard)):
        members = digests[start : start + windows_per_shard]
        path = out_dir / shard_name(number)
        if not is_whole(path, members):
            found: dict[str, TopTokens] = {}
            for first in range(0, len(members), micro_batch_size):
                batch = members[first : first + micro_batch_size]
                inputs = [windows[distinct[digest]] for digest in batch]
                found |= zip(batch, top_tokens(teacher, inputs, header.top_k), strict=True)
            write_shard(path, found)
        shards.append((path.name, members))
        tick(done=start + len(members))
    write_index(out_dir, header, shards)
    return sum((out_dir / name).stat().st_size for name, _ in shards)


def top_tokens(teacher: Body, windows: Sequence[Window], top_k: int) -> Iterator[TopTokens]:
    """The teacher's top-k tokens at every position of some windows, logits a chunk at a time."""
    device = next(teacher.parameters()).device

    def stacked(name: Literal["input_ids", "position_ids"]) -> torch.Tensor:
        return torch.from_numpy(np.stack([window[name] for window in windows])).to(device)

    with torch.no_grad():
        position_ids = stacked("position_ids") if "position_ids" in windows[0] else None
        states = teacher(stacked("input_ids"), position_ids).last
        head = teacher.head()
        chunk_tokens = max(1, CHUNK_VALUES // head.weight.shape[0])
        for hidden in states:
            ids, logprobs, tails = [], [], []
            for chunk in hidden.split(chunk_tokens):
                logits = wide(head.logits(chunk)).log_softmax(-1)
                values, tokens = logits.topk(top_k, dim=-1)
                tail = logits.scatter(-1, tokens, float("-inf")).logsumexp(-1)
                ids.append(tokens.to(device="cpu", dtype=torch.int32))
                logprobs.append(values.to(device="cpu", dtype=torch.float16))
                tails.append(tail.to(device="cpu", dtype=torch.float16))
            yield TopTokens(
                ids=torch.cat(ids).numpy(),
                logprobs=torch.cat(logprobs).numpy(),
                tail_logprobs=torch.cat(tails).numpy(),
            )


def tokenizer_fingerprint(directory: Path) -> str:
    """sha256 of a checkpoint's tokenizer.

    Raises:
        UsageError: when there is none.
    """
    for name in ("tokenizer.json", "tokenizer.model"):
        if (directory / name).is_file():
            return sha256_of_file(directory / name)
    raise UsageError(
        "the checkpoint has no tokenizer",
        where=str(directory),
        expected="tokenizer.json",
        hint="copy the tokenizer's files into the checkpoint's directory",
    )


LOGITS: Stage[Distill] = Stage(
    name="logits",
    run=run,
    format_version=2,
    libraries=("torch", "transformers", "numpy"),
    content=lambda config: training_content(config, "top_k", trains=False),
    data=lambda config: tuple(domain.data for domain in config.mixture()),
    fingerprint=source_fingerprint,
    require_memory=lambda _config, source, context: require_model_memory(
        (source.path, context.dtype), device=context.device
    ),
)
