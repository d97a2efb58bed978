"""The process that renders chat templates: transformers' own function, within limits of time and memory.

A template comes with a model from anywhere, and Jinja's sandbox keeps it from files but not from loops
without end or strings without measure. So it runs here, where a limit can end it. Requests and answers
are JSON, one per line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TypedDict

# Behind what the interpreter and its libraries take already.
MEMORY_BYTES = 1 << 30
MAX_OUTPUT_CHARACTERS = 1 << 26
# What templates are told that it is today: the same text has the same tokens on every day. It is the date
# that Llama 3's own template writes where it is told none.
TODAY = datetime(2024, 7, 26)  # noqa: DTZ001 - a date as it stands in a text


Messages = list[dict[str, object]]
# What transformers' renderer returns: a text and its spans of `{% generation %}` blocks per conversation.
Texts = tuple[list[str], list[list[tuple[int, int]]]]


class JobRequest(TypedDict):
    """One conversation to render.

    Attributes:
        template: Number of its template in the request.
        messages: The conversation.
        arguments: Further keyword arguments of `render_jinja_template`.
        objects: What `compressor.data.template.with_objects` makes of the messages.
    """

    template: int
    messages: Messages
    arguments: dict[str, object]
    objects: tuple[Messages, list[str]] | None


class Request(TypedDict):
    """What is to be rendered, and how long the parent waits for it."""

    templates: list[str]
    jobs: list[JobRequest]
    seconds: float


def serve() -> None:
    """Answer requests until the standard input ends.

    A line is a `Request`. The answer is a list with `[text, spans]` for every job, or
    `{"error": class, "message": ..., "job": number}` for the first that failed.
    """
    from transformers.utils import logging
    from transformers.utils.chat_template_utils import render_jinja_template

    logging.set_verbosity_error()
    # What templates or libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_memory()
    answers.write(b'"ready"\n')
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # For a parent that is gone; one that is there ends this process earlier.
        signal.alarm(int(request["seconds"]) + 5)
        answer = _answer(render_jinja_template, request)
        signal.alarm(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(render: Callable[..., Texts], request: Request) -> object:
    rendered: list[object] = []
    left = MAX_OUTPUT_CHARACTERS
    reason = None
    try:
        for job in request["jobs"]:
            texts, spans = _rendered(_renderer(render, request["templates"][job["template"]], job), job)
            left -= len(texts[0])
            if left < 0:
                reason = ("MemoryError", "its output has no end")
                break
            rendered.append([texts[0], spans[0] if spans else []])
    except MemoryError:
        reason = ("MemoryError", "it takes too much memory")
    except RecursionError:
        reason = ("RecursionError", "it calls itself without end")
    except Exception as error:  # noqa: BLE001 - a template is a program: anything may go wrong in it
        reason = (type(error).__name__, str(error)[:2000])
    if reason is None:
        return rendered
    return {"error": reason[0], "message": reason[1], "job": len(rendered)}


def _renderer(render: Callable[..., Texts], template: str, job: JobRequest) -> Callable[[Messages], Texts]:
    def of(messages: Messages) -> Texts:
        arguments = {"strftime_now": TODAY.strftime, **job["arguments"], "conversations": [messages]}
        return render(chat_template=template, **arguments)

    return of


def _rendered(render: Callable[[Messages], Texts], job: JobRequest) -> Texts:
    """One conversation; with empty contents for those that are null, where the template cannot take null."""
    messages, objects = job["messages"], job["objects"]
    filled = _filled(messages)
    if filled == messages:
        return _with_calls(render, messages, objects)
    filled_objects = objects and (_filled(objects[0]), objects[1])
    try:
        rendered = _with_calls(render, messages, objects)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - whatever it is, it fails again or null was the reason
        return _with_calls(render, filled, filled_objects)
    if "None" not in rendered[0][0]:
        return rendered
    without = _with_calls(render, filled, filled_objects)
    return rendered if rendered[0][0].count("None") == without[0][0].count("None") else without


def _filled(messages: Messages) -> Messages:
    return [
        {**message, "content": ""} if message.get("content", "") is None else message for message in messages
    ]


def _with_calls(
    render: Callable[[Messages], Texts], messages: Messages, objects: tuple[Messages, list[str]] | None
) -> Texts:
    """One conversation; with objects for its calls' arguments where their JSON fails, or is quoted."""
    if objects is None:
        return render(messages)
    with_objects, strings = objects
    try:
        rendered = render(messages)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - whatever it is, objects fail too or it was the strings
        return render(with_objects)
    # As tojson of transformers' templates quotes a string, or as json.dumps does.
    quoted = [json.dumps(string, ensure_ascii=escapes) for string in strings for escapes in (False, True)]
    return render(with_objects) if any(string in rendered[0][0] for string in quoted) else rendered


def _limit_memory() -> None:
    """Let this process grow by so much and no further, where the system can say so."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no Path for one line
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
