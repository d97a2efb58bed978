"""Data sets of the Hugging Face hub: pinned to a revision, streamed, and taken up where they were left."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from compressor.core.errors import NetworkError, UsageError
from compressor.core.network_errors import lost_connections

_DEFAULT_SPLIT = "train"
ONLINE = "connect to the hub (HF_TOKEN for gated data), or give a local file or directory"


class HubName(NamedTuple):
    """A data set of the hub, as a SOURCE names it: `ID`, `ID:CONFIG` or `ID:CONFIG:SPLIT`.

    Attributes:
        data_set: Its id.
        config: Its configuration; empty for the default one.
        split: What is read of it.
    """

    data_set: str
    config: str
    split: str

    @property
    def spec(self) -> str:
        """The shortest SOURCE that names it."""
        if self.split != _DEFAULT_SPLIT:
            return ":".join(self)
        return f"{self.data_set}:{self.config}" if self.config else self.data_set


def hub_name(spec: str) -> HubName:
    """What a SOURCE names; `ID::SPLIT` is a split of the default configuration.

    Raises:
        UsageError: for more parts than three.
    """
    data_set, config, split, *more = [*spec.split(":"), "", ""]
    if any(more):
        raise UsageError(
            "this is neither a file nor a data set of the hub",
            where=spec,
            expected="ID, ID:CONFIG or ID:CONFIG:SPLIT",
            hint="check the path; a path that starts with / or ./ is always a file",
        )
    return HubName(data_set, config, split or _DEFAULT_SPLIT)


def open_hub_split(spec: str) -> Any:
    """The split that a SOURCE names, as a stream of rows.

    Raises:
        UsageError: for what is not a data set id, configuration or split; with the splits that there are.
        NetworkError: when the hub cannot be reached.
    """
    from datasets import load_dataset

    name, revision = hub_name(spec), hub_revision(spec)
    try:
        splits = load_dataset(name.data_set, name.config or None, streaming=True, revision=revision)
    except lost_connections(OSError) as error:
        raise NetworkError("the data set cannot be streamed", where=spec, found=error, hint=ONLINE) from error
    except ValueError as error:
        raise UsageError(
            "the data set cannot be read under this name",
            where=spec,
            found=error,
            hint="check the id and the configuration on the data set's page",
        ) from error
    if name.split not in splits:
        raise UsageError(
            "the data set has no such split",
            where=spec,
            expected=", ".join(map(str, splits)),
            found=name.split,
            hint="use " + ":".join([name.data_set, name.config, next(map(str, splits), "")]),
        )
    return splits[name.split]


@functools.lru_cache
def hub_revision(spec: str) -> str:
    """The revision that the hub holds now.

    Raises:
        UsageError: for what is not a data set id.
        NetworkError: when the hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return str(HfApi().dataset_info(hub_name(spec).data_set).sha)
    except HFValidationError as error:
        raise UsageError(
            "this is neither a file nor a data set id",
            where=spec,
            found=error,
            hint="check the path, or give the id of a data set such as NAME/DATASET",
        ) from error
    except lost_connections(OSError, HfHubHTTPError, OfflineModeIsEnabled, RuntimeError) as error:
        raise NetworkError(
            "the data set's revision cannot be asked for",
            where=spec,
            found=type(error).__name__,
            hint=ONLINE,
        ) from error
