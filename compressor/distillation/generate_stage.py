"""The generate stage: text sampled from the teacher, as one more training text for the student.

It is sampled by a server where vLLM or TensorRT-LLM is installed (`server_sampler`), else in this process:
there every batch of samples has a generator of its own, seeded by the run's seed and the batch's number, so
its content does not depend on what was sampled before it: an interrupted stage continues to the same
bytes, and not behind a text that was altered meanwhile. Samples begin with the BOS token (end-of-text
for a tokenizer without), which is not written, and after it, if asked for, with consecutive windows of
a prompt text, over and over where samples end early and use up more of them than there are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from compressor.choices.samplers import SAMPLES_PER_BATCH, TRANSFORMERS
from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import as_record, read_json_mapping
from compressor.data.packing import read_windows
from compressor.data.sources import source_fingerprint
from compressor.data.tokenise import TokenArray
from compressor.distillation.server_sampler import SampledText, ServerSampler, served
from compressor.models.end_tokens import end_tokens, own_end_tokens
from compressor.models.load import load_model
from compressor.models.memory import require_model_memory
from compressor.models.positions import num_positions
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.option import content_of, unless_neutral
from compressor.recipe.recipe import Generate
from compressor.runs.artifact import ModelArtifact, sealed, unsealed, write_json
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh

TEXT_FILE = "text.jsonl"
PROGRESS_FILE = "progress.json"
_CHUNK_BYTES = 1 << 22
# So many batches in a row without a single token: the model ends every sample at once.
MAX_EMPTY_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """What has been written.

    Attributes:
        num_batches: Whole batches.
        num_tokens: Sampled tokens, without prompts and end tokens.
        num_samples: Lines of the text file.
        num_bytes: Its size.
        num_ended: Samples that the model ended itself, empty ones included.
        sha256: Of its bytes.
    """

    num_batches: int = 0
    num_tokens: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    num_ended: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Sampler:
    """Draws numbered batches of samples from a model; equal numbers give equal samples."""

    def __init__(
        self, model: Any, tokenizer: Any, config: Generate, *, prompts: TokenArray | None, seed: int
    ) -> None:
        """Set the model's generation settings, all of them: none of the checkpoint's own remain.

        The model is in evaluation mode; prompts are `[num_prompts, prompt_tokens]`.

        Raises:
            UsageError: for a tokenizer without BOS and end-of-text tokens.
        """
        from transformers import GenerationConfig

        self._model, self._prompts, self._seed = model, prompts, seed
        self._tokenizer, self._max_new_tokens = tokenizer, config.max_new_tokens
        self._start = _start_token(tokenizer)
        self._ends = end_tokens(model.generation_config.eos_token_id, tokenizer)
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=0,
            max_new_tokens=config.max_new_tokens,
            bos_token_id=self._start,
            eos_token_id=list(self._ends) or None,
            pad_token_id=self._ends[0] if self._ends else 0,
        )

    def samples(self, number: int) -> list[SampledText]:
        """The batch's samples as text; of an empty one nothing is kept."""
        return [
            SampledText(
                text=self._tokenizer.decode([*prompt, *sampled], clean_up_tokenization_spaces=False),
                num_tokens=len(sampled),
                is_ended=len(sampled) < self._max_new_tokens,
            )
            for prompt, sampled in self.batch(number)
        ]

    @torch.no_grad()
    def batch(self, number: int) -> list[tuple[list[int], list[int]]]:
        """Prompt and sampled tokens of each of the batch's samples, without start and end tokens."""
        prompts = self._batch_prompts(number)
        ids = torch.from_numpy(prompts).to(self._model.device)
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)
            torch.manual_seed(int(seed[0]))
            output = self._model.generate(ids, attention_mask=torch.ones_like(ids))
        sampled = output[:, ids.shape[1] :].tolist()
        return [
            (prompt[1:], list(takewhile(lambda token: token not in self._ends, row)))
            for prompt, row in zip(prompts.tolist(), sampled, strict=True)
        ]

    def _batch_prompts(self, number: int) -> Any:
        start = np.full((SAMPLES_PER_BATCH, 1), self._start, dtype=np.int64)
        if self._prompts is None:
            return start
        first = number * SAMPLES_PER_BATCH
        rows = np.arange(first, first + SAMPLES_PER_BATCH) % len(self._prompts)
        return np.concatenate([start, self._prompts[rows].astype(np.int64)], axis=1)


def run(config: Generate, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Sample from `source` until `config.tokens` tokens are written to `text.jsonl`.

    Raises:
        UsageError: without a number of tokens, or for samples longer than the model's context.
        VerificationError: for a model that ends every sample at once.
    """
    if config.tokens == 0:
        raise UsageError(
            "there is no text to generate",
            where="tokens",
            expected="at least 1",
            found=0,
            hint="set the number of tokens to sample, such as --tokens 100m",
        )
    _require_context(config, source)
    start_afresh(out_dir, but=(TEXT_FILE, PROGRESS_FILE))
    tokenizer = load_tokenizer(source.path, trust_remote_code=context.trust_remote_code)
    with _sampler(config, source, tokenizer, context) as sampler:
        progress = _write_text(config, sampler, out_dir, context)
    (out_dir / PROGRESS_FILE).unlink()
    details = {
        "tokens": progress.num_tokens,
        "samples": progress.num_samples,
        "ended_by_the_model": progress.num_ended,
        "prompts": config.prompts,
        "sampler": config.settled().sampler,
        "seed": context.seed,
    }
    return StageResult(num_parameters=source.num_parameters, details=details)


@contextlib.contextmanager
def _sampler(
    config: Generate, source: ModelArtifact, tokenizer: Any, context: StageContext
) -> Iterator[Sampler | ServerSampler]:
    """The model in this process, or a server that has it until the end of the block."""
    name, prompts = config.settled().sampler, _prompts(config, tokenizer)
    if name != TRANSFORMERS:
        with served(name, source.path, tokenizer=tokenizer, config=config, seed=context.seed) as server:
            server.prompts, server.start = prompts, _start_token(tokenizer)
            server.ends = end_tokens(own_end_tokens(source.path), tokenizer)
            context.console.info(f"sampling through {name}")
            yield server
        return
    model = load_model(
        source.path, dtype=context.dtype, device=context.device, trust_remote_code=context.trust_remote_code
    )
    yield Sampler(model, tokenizer, config, prompts=prompts, seed=context.seed)


def _write_text(
    config: Generate, sampler: Sampler | ServerSampler, out_dir: Path, context: StageContext
) -> _Progress:
    progress = _read_progress(out_dir)
    file = out_dir / TEXT_FILE
    file.touch()
    num_empty = 0
    with file.open("r+b") as text, context.console.progress("generating", config.tokens) as tick:
        digest = _written(text, file, progress)
        text.truncate()
        while progress.num_tokens < config.tokens:
            before = progress.num_tokens
            lines, progress = _batch_lines(config, sampler, progress)
            digest.update(lines)
            progress = replace(progress, sha256=digest.hexdigest())
            text.write(lines)
            text.flush()
            os.fsync(text.fileno())
            write_json(out_dir / PROGRESS_FILE, sealed(asdict(progress)))
            tick(done=min(progress.num_tokens, config.tokens))
            num_empty = num_empty + 1 if progress.num_tokens == before else 0
            if num_empty == MAX_EMPTY_BATCHES:
                raise VerificationError(
                    "the model ends every sample at once",
                    expected="some text",
                    found=f"only empty samples in {num_empty} batches in a row",
                    hint="give prompts with --prompts SOURCE (--generate-prompts in a run)",
                )
    return progress


def _written(text: BinaryIO, file: Path, progress: _Progress) -> hashlib._Hash:
    """Read what is recorded as written, to its end, and compare it with its sum; returns the running sum."""
    digest = hashlib.sha256()
    while left := progress.num_bytes - text.tell():
        chunk = text.read(min(left, _CHUNK_BYTES))
        if not chunk:
            break
        digest.update(chunk)
    if digest.hexdigest() != progress.sha256:
        raise VerificationError(
            "the text sampled so far is not what was written",
            where=str(file),
            expected=f"{progress.num_bytes:,} bytes, sha256 {progress.sha256}",
            found=f"{text.tell():,} bytes, sha256 {digest.hexdigest()}",
            hint=_hint(file.parent),
        )
    return digest


def _hint(out_dir: Path) -> str:
    return f"delete {out_dir}, then the same command samples from the start"


def _batch_lines(
    config: Generate, sampler: Sampler | ServerSampler, progress: _Progress
) -> tuple[bytes, _Progress]:
    """The lines of the next batch up to the wanted number of tokens, and the progress behind it."""
    lines: list[bytes] = []
    num_tokens, num_ended = progress.num_tokens, progress.num_ended
    for sample in sampler.samples(progress.num_batches):
        if num_tokens >= config.tokens:
            break
        num_tokens += sample.num_tokens
        num_ended += sample.is_ended
        if sample.num_tokens:
            lines.append(json.dumps({"text": sample.text}, ensure_ascii=False).encode() + b"\n")
    written = b"".join(lines)
    return written, replace(
        progress,
        num_batches=progress.num_batches + 1,
        num_tokens=num_tokens,
        num_samples=progress.num_samples + len(lines),
        num_bytes=progress.num_bytes + len(written),
        num_ended=num_ended,
    )


def _read_progress(out_dir: Path) -> _Progress:
    file = out_dir / PROGRESS_FILE
    if not file.is_file():
        return _Progress()
    what = "the progress of sampling"
    record = unsealed(read_json_mapping(file, what=what), file, what=what, hint=_hint(out_dir))
    return as_record(_Progress, record, what=what, where=file)


def _prompts(config: Generate, tokenizer: Any) -> TokenArray | None:
    """As many prompts as samples of full length need."""
    if config.prompts is None:
        return None
    size = -(-config.tokens // config.max_new_tokens)
    return read_windows(config.prompts, "train", tokenizer, size=size, seq_len=config.prompt_tokens)


def _start_token(tokenizer: Any) -> int:
    """What samples begin with: BOS, end-of-text for a tokenizer without; a UsageError where neither is."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise UsageError(
            "the tokenizer has neither a BOS nor an end-of-text token to begin with",
            hint="sample from a model whose tokenizer names bos_token or eos_token",
        )
    return int(start)


def _require_context(config: Generate, source: ModelArtifact) -> None:
    longest = 1 + (config.prompt_tokens if config.prompts else 0) + config.max_new_tokens
    context_length = num_positions(source.path)
    if longest > context_length:
        raise UsageError(
            "the samples are longer than the model's context",
            where="prompt_tokens and max_new_tokens",
            expected=f"at most {context_length} tokens, the start token included",
            found=longest,
            hint="lower max_new_tokens or prompt_tokens",
        )


def _content(config: Generate) -> dict[str, object]:
    """All but the weight: how often a text is read changes none of it. The sampler is this machine's."""
    content = content_of(config.settled())
    content = {name: value for name, value in content.items() if name != "weight"}
    return unless_neutral(content, sampler=TRANSFORMERS)


def _require_memory(config: Generate, source: ModelArtifact, context: StageContext) -> None:
    """Of a model in this process; a server says itself what it lacks."""
    if config.settled().sampler == TRANSFORMERS:
        require_model_memory((source.path, context.dtype), device=context.device)


GENERATE: Stage[Generate] = Stage(
    name="generate",
    run=run,
    content=_content,
    data=lambda config: (config.prompts,) if config.prompts else (),
    fingerprint=source_fingerprint,
    require_memory=_require_memory,
)
