"""Faults of measured chat quality: replies, figures of conversations, and the figures made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.corruptions.faults import Fault, Plant, delete, fields, record_faults
from tests.corruptions.formats import change_json

_EVALUATION, _REPLIES = "evaluation.json", "replies.jsonl"
_FIRST, _OTHER = "items/teacher.json", "items/student.json"


def chat_faults() -> list[Fault]:
    """Faults of `evaluate --chat-data` of a teacher and its student."""

    def longer(items: dict[str, Any]) -> None:
        # A model of random weights never ends its reply, and what it says is cut.
        items["replies"][0] = items["replies"][0][:-1]

    def looping(items: dict[str, Any]) -> None:
        loop, *others = items["replies"]
        items["replies"] = [[5, 6] * (len(loop) // 2), *([*range(len(reply))] for reply in others)]

    def likelier(items: dict[str, Any]) -> None:
        items["log_likelihood"][1] *= 0.9

    def more_relevant(items: dict[str, Any]) -> None:
        items["relevance"][1] += 0.1

    def nearer(items: dict[str, Any]) -> None:
        items["kl"][0] *= 0.9

    def lost(items: dict[str, Any]) -> None:
        items.update({name: values[:-1] for name, values in items.items()})

    def better(record: dict[str, Any]) -> None:
        record["models"]["student"]["turns"]["perplexity"] *= 0.9

    def narrower(record: dict[str, Any]) -> None:
        pair = record["paired"][0]
        pair["low"] = (pair["low"] + pair["difference"]) / 2

    of_items = {
        "reply, a token lost": longer,
        "reply, a loop": looping,
        "likelihood of a reply": likelier,
        "relevance of a reply": more_relevant,
        "KL of a conversation": nearer,
        "a conversation lost": lost,
    }
    of_figures = {"perplexity of the turns": better, "interval": narrower}
    # Without its record nothing here is this tool's alone.
    common = [fault for fault in record_faults() if fault.name != "record deleted"]
    return [
        *common,
        *(Fault(name=name, plant=fields(change, _OTHER)) for name, change in of_items.items()),
        *(Fault(name=name, plant=_in_both_records(change)) for name, change in of_figures.items()),
        Fault(name="items of two models swapped", plant=_swapped),
        Fault(name="a line of the replies lost", plant=_line_lost),
        *(Fault(name=f"{name} deleted", plant=delete(name)) for name in (_EVALUATION, _REPLIES, _OTHER)),
    ]


def _in_both_records(change: Any) -> Plant:
    """A figure that was edited in the evaluation and in the artifact's record of it."""

    def plant(directory: Path) -> None:
        change_json(directory / _EVALUATION, change)
        change_json(directory / "artifact.json", lambda artifact: change(artifact["details"]))

    return plant


def _swapped(directory: Path) -> None:
    first, other = directory / _FIRST, directory / _OTHER
    one, two = first.read_bytes(), other.read_bytes()
    first.write_bytes(two)
    other.write_bytes(one)


def _line_lost(directory: Path) -> None:
    lines = (directory / _REPLIES).read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / _REPLIES).write_text("".join(lines[:-1]), encoding="utf-8")
