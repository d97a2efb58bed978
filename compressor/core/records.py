"""Base of the records that this project writes as JSON and reads again: typed, frozen, no unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """One record, or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return self.model_dump(mode="json")
