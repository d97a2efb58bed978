"""A model's chat template, rendered in a process of its own that ends when it takes too long or too much."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressor.core.errors import ResourceError, UnsupportedError, UsageError, VerificationError
from compressor.data.messages import Message
from compressor.data.rows import Conversation
from compressor.data.template_worker import JobRequest, Messages, Request

# Far above what a batch of conversations takes.
SECONDS = 30.0
# Importing transformers from a slow disk.
_START_SECONDS = 180.0
_MAX_ANSWER_BYTES = 1 << 29
# What only a template that is hostile or broken runs into.
_BOUNDS = ("MemoryError", "RecursionError")
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from compressor.data.template_worker import serve; serve()"
)


@dataclass(frozen=True, kw_only=True)
class Job(Conversation):
    """A conversation to render.

    Attributes:
        prompts: Whether the header of an answer is added.
        tracks: Whether the spans of `{% generation %}` blocks are wanted.
    """

    prompts: bool = False
    tracks: bool = False


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text, and the spans of characters that `{% generation %}` blocks made."""

    text: str
    spans: tuple[tuple[int, int], ...]


def template_of(tokenizer: Any, *, tools: Sequence[object] | None) -> str:
    """The template that `tokenizer.apply_chat_template` would take.

    Raises:
        UsageError: for a tokenizer without one.
        UnsupportedError: for a tokenizer whose conversations are rendered by code of its own.
    """
    from transformers import PreTrainedTokenizerBase

    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        raise UnsupportedError(
            "this tokenizer renders conversations by code of its own",
            where=type(tokenizer).__name__,
            expected="a chat template",
            hint="render them beforehand, into rows with a 'text' string",
        )
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the text holds conversations, and the tokenizer has no chat template",
            where=str(getattr(tokenizer, "name_or_path", "")) or None,
            hint="put a chat_template.jinja beside the tokenizer, or give rows with a 'text' string",
        )
    try:
        return str(tokenizer.get_chat_template(None, tools))
    except ValueError as error:
        raise UsageError(
            "there are several chat templates and no default one",
            found=error,
            hint="put the wanted one beside the tokenizer as chat_template.jinja",
        ) from error


def render_jobs(jobs: Sequence[Job], tokenizer: Any) -> list[Rendered]:
    """Render conversations exactly as `tokenizer.apply_chat_template(..., tokenize=False)` does.

    Where a call's arguments are JSON and the template fails on that or quotes it, they are given to it as an
    object; where a content is null and it fails on that or writes None, as an empty text. The day that a
    template asks for is always the same.

    All of them are rendered within one limit of time.

    Raises:
        UsageError: for a tokenizer without a template, or one that refuses a conversation.
        VerificationError: for a template that takes too much time or memory.
    """
    if not jobs:
        return []
    templates: dict[str, int] = {}
    numbers = [templates.setdefault(template_of(tokenizer, tools=job.tools), len(templates)) for job in jobs]
    # What `apply_chat_template` lays beside the conversation.
    special = {
        name: [str(token) for token in value] if isinstance(value, list | tuple) else str(value)
        for name, value in tokenizer.special_tokens_map.items()
    }
    described = [
        JobRequest(
            template=number,
            messages=[dict(message) for message in job.messages],
            arguments={
                **special,
                **job.extras,
                "tools": job.tools,
                "add_generation_prompt": job.prompts,
                "return_assistant_tokens_mask": job.tracks,
            },
            objects=with_objects(job.messages),
        )
        for number, job in zip(numbers, jobs, strict=True)
    ]
    try:
        answer = _process().ask(Request(templates=list(templates), jobs=described, seconds=SECONDS))
    except _EndedError as ended:
        _process.cache_clear()
        raise _exceeds(tokenizer, jobs[0].where, str(ended)) from ended
    if isinstance(answer, dict):
        failed = jobs[answer["job"]]
        if answer["error"] in _BOUNDS:
            raise _exceeds(tokenizer, failed.where, answer["message"])
        roles = ", ".join(str(message["role"]) for message in failed.messages[:20])
        raise UsageError(
            "the chat template refuses a conversation",
            where=failed.where or None,
            expected=answer["message"] or answer["error"],
            found=f"roles {roles}",
            hint="correct or remove this row, or put another chat_template.jinja beside the tokenizer",
        )
    return [Rendered(text=text, spans=tuple((start, end) for start, end in spans)) for text, spans in answer]


def with_objects(messages: Sequence[Message]) -> tuple[Messages, list[str]] | None:
    """The messages with calls' arguments as objects where they are JSON, and that JSON; None without any.

    OpenAI's interface has arguments as JSON. Some templates take that as it is, and others an object, of
    which they make JSON; the worker sees which.
    """
    found: list[str] = []

    def of_call(call: object) -> object:
        if not isinstance(call, dict):
            return call
        changed = {**call, "function": of_call(call["function"])} if "function" in call else dict(call)
        given = call.get("arguments")
        if isinstance(given, str):
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(value := json.loads(given), dict):
                    found.append(given)
                    changed["arguments"] = value
        return changed

    changed: Messages = [dict(message) for message in messages]
    for copied, message in zip(changed, messages, strict=True):
        if calls := message.get("tool_calls"):
            copied["tool_calls"] = [of_call(call) for call in calls]
    return (changed, found) if found else None


def _exceeds(tokenizer: Any, where: str, found: str) -> VerificationError:
    name = str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
    return VerificationError(
        "the chat template takes more time or memory than a conversation can need",
        where=f"{name}, from {where} on" if where else name,
        expected=f"at most {SECONDS:.0f} s and 1 GiB",
        found=found,
        hint="a chat template from a source that you trust, in chat_template.jinja",
    )


def _not_started(error: Exception) -> ResourceError:
    return ResourceError(
        "the process that renders chat templates cannot be started",
        found=error,
        hint="free memory or processes, then run the same command again",
    )


class _EndedError(Exception):
    """The process did not answer in time, or is gone."""


class _Process:
    """The worker, started once and kept."""

    def __init__(self) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this package
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is the parent's alone to handle
            )
        except OSError as error:
            raise _not_started(error) from error
        try:
            self._read(_START_SECONDS)
        except _EndedError as ended:
            raise _not_started(ended) from ended

    def ask(self, request: Request) -> Any:
        """The answer to a request; kills the process when there is none in time."""
        try:
            content = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise UsageError(
                "a conversation holds a value that JSON cannot express",
                found=error,
                hint="store its rows as JSON lines",
            ) from error
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except OSError as error:
            self.close()
            raise _EndedError("the process that renders it has ended") from error
        return json.loads(self._read(request["seconds"]))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        parts: list[bytes] = []
        num_bytes = 0
        while not (parts and parts[-1].endswith(b"\n")):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 1 << 20) if ready else b""
            num_bytes += len(part)
            if not part or num_bytes > _MAX_ANSWER_BYTES:
                self.close()
                raise _EndedError(f"no answer in {seconds:.0f} s" if not ready else "the process has ended")
            parts.append(part)
        return b"".join(parts)


@functools.lru_cache(maxsize=1)
def _process() -> _Process:
    import atexit

    process = _Process()
    atexit.register(process.close)
    return process
