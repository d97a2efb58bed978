"""What a runtime reports of one generation: clock readings and counted tokens. Metrics start here."""

from __future__ import annotations

from dataclasses import dataclass

from bench.design.grid import Cell
from compressor.core.errors import VerificationError


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One static batch from request to last token, tokens counted and not as requested.

    Attributes:
        start_s: Monotonic clock when the request was handed over, before its key/value cache existed.
        token_times_s: Clock after every generated token step, one for the whole batch, `[num_steps]`.
        num_input_tokens: Of every sequence, `[batch_size]`; so are `num_output_tokens`.
    """

    start_s: float
    token_times_s: tuple[float, ...]
    num_input_tokens: tuple[int, ...]
    num_output_tokens: tuple[int, ...]
    num_gpus: int = 0


def verify_timeline(timeline: Timeline, cell: Cell) -> Timeline:
    """Return the timeline unchanged if exactly the requested work was done.

    A VerificationError when tokens in, tokens out, steps or sequences differ from the cell.
    """
    found = {
        "input tokens": timeline.num_input_tokens,
        "output tokens": timeline.num_output_tokens,
        "token steps": (len(timeline.token_times_s),),
    }
    expected = {
        "input tokens": (cell.isl,) * cell.batch_size,
        "output tokens": (cell.osl,) * cell.batch_size,
        "token steps": (cell.osl,),
    }
    for what, count in expected.items():
        if found[what] != count:
            raise VerificationError(
                f"the runtime did not do the requested work: {what} differ",
                where=f"cell {cell}",
                expected=list(count),
                found=list(found[what]),
                hint="leave these lengths out: this model or runtime stops early",
            )
    return timeline
