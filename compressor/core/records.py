"""Base of the records that this project writes as JSON and reads again: typed, frozen, no unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from compressor.core.regular_files import stays_below


def _below(name: str) -> str:
    if not stays_below(name):
        raise ValueError("this name leads out of the directory of its record")
    return name


# Of a file or directory, relative to that of the record.
RelativeName = Annotated[str, AfterValidator(_below)]


class Record(BaseModel):
    """One record, or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return self.model_dump(mode="json")
