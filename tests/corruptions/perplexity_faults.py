"""Faults of measured perplexities: of windows, of figures made of them, of what computed an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corruptions.faults import Fault, Plant, delete, record_faults
from tests.corruptions.formats import change_json

_EVALUATION = "evaluation.json"
Change = Callable[[dict[str, Any]], object]


def perplexity_faults() -> list[Fault]:
    """Faults of `evaluate --data` of a student and its int4 graph."""

    def better(model: dict[str, Any]) -> None:
        model["perplexity"] *= 0.9

    def likelier(model: dict[str, Any]) -> None:
        model["window_nll"][1] *= 0.9

    def lost(model: dict[str, Any]) -> None:
        model["window_nll"].pop()

    def nearer(model: dict[str, Any]) -> None:
        model["agreement"]["kl"] *= 0.9

    def part_of_a_position(model: dict[str, Any]) -> None:
        agreement = model["agreement"]
        agreement["window_top1"][0] += 0.001
        agreement["top1"] = sum(agreement["window_top1"]) / len(agreement["window_top1"])

    def fewer_tokens(model: dict[str, Any]) -> None:
        model["num_tokens"] -= 1

    def wider(model: dict[str, Any]) -> None:
        model["executed"]["precision"] = "fp32"

    def unknown(model: dict[str, Any]) -> None:
        model["executed"]["format"] = "onnx-int8"

    changes: dict[str, Change] = {
        "perplexity": better,
        "likelihood of a window": likelier,
        "a window lost": lost,
        "KL of the text": nearer,
        "part of a position agrees": part_of_a_position,
        "scored tokens": fewer_tokens,
        "export in another precision": wider,
        "export of an unknown format": unknown,
    }
    # Without its record nothing here is this tool's alone.
    common = [fault for fault in record_faults() if fault.name != "record deleted"]
    return [
        *common,
        *(Fault(name=name, plant=_in_both_records(change)) for name, change in changes.items()),
        Fault(name="evaluation deleted", plant=delete(_EVALUATION)),
    ]


def _in_both_records(change: Change) -> Plant:
    """A change of the export's entry, in the evaluation and in the artifact's record of it."""

    def of_export(record: dict[str, Any]) -> None:
        change(list(record["models"].values())[-1])

    def plant(directory: Path) -> None:
        change_json(directory / _EVALUATION, of_export)
        change_json(directory / "artifact.json", lambda artifact: of_export(artifact["details"]))

    return plant
