"""Data sets of the Hugging Face hub: pinned to a revision, streamed, and taken up where they were left."""

from __future__ import annotations

import functools
from typing import Any

from compressor.errors import NetworkError, UsageError


def open_hub_data_set(spec: str, bounds: tuple[int, int | None], state: dict[str, Any] | None) -> Any:
    """A stream of rows, `bounds[0]` up to `bounds[1]` of the data set's train split.

    Args:
        spec: `ID` or `ID:CONFIG`.
        bounds: First row and the one behind the last, None for no end.
        state: What the stream's `state_dict()` returned, to continue behind the row taken last.

    Raises:
        UsageError: for what is no data set id.
        NetworkError: when the hub cannot be reached.
    """
    from datasets import load_dataset

    name, _, config = spec.partition(":")
    revision = hub_revision(spec)
    try:
        stream = load_dataset(name, config or None, split="train", streaming=True, revision=revision)
    except (OSError, ValueError) as error:
        raise NetworkError("the data set cannot be streamed", where=spec, found=error) from error
    first, end = bounds
    stream = stream.skip(first) if first else stream
    stream = stream if end is None else stream.take(end - first)
    if state is not None:
        stream.load_state_dict(state)
    return stream


@functools.lru_cache
def hub_revision(spec: str) -> str:
    """The revision that the hub holds now.

    Raises:
        UsageError: for what is no data set id.
        NetworkError: when the hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    name = spec.partition(":")[0]
    try:
        return str(HfApi().dataset_info(name).sha)
    except HFValidationError as error:
        raise UsageError("this is neither a file nor a data set id", where=spec, found=error) from error
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled, RuntimeError) as error:
        raise NetworkError(
            "the data set's revision cannot be asked for",
            where=spec,
            found=type(error).__name__,
            hint="give a local file or directory, or go online (HF_TOKEN for gated data)",
        ) from error
