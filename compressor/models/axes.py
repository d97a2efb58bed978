"""The axes of a decoder: what the rows and columns of its weights stand for.

Whatever cuts, counts or scores weights reads them here and in the families' lists of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis.

    Attributes:
        field: The dimension that counts its units, in Hugging Face's name.
        is_head: Whether a unit is a head of `head_dim` channels instead of one channel.
        is_prunable: Whether units can be removed.
        is_per_layer: Whether every layer keeps units of its own; otherwise all layers keep the same ones.
        groups: The dimension that counts the groups of units; every kept group keeps equally many.
        members: The axis whose groups its units are. Such a unit goes with all its members, and counts as
            much as they do together; all of them stay where nothing else is asked for.
        is_cut: Whether tensor parallelism gives each rank a range of the units.
    """

    field: str
    is_head: bool = False
    is_prunable: bool = False
    is_per_layer: bool = False
    groups: str | None = None
    members: str | None = None
    is_cut: bool = False


AXES: dict[str, Axis] = {
    "hidden": Axis(field="hidden_size", is_prunable=True),
    "intermediate": Axis(field="intermediate_size", is_prunable=True, is_per_layer=True, is_cut=True),
    "heads": Axis(
        field="num_attention_heads",
        is_head=True,
        is_prunable=True,
        is_per_layer=True,
        groups="num_key_value_heads",
        is_cut=True,
    ),
    "kv_heads": Axis(
        field="num_key_value_heads", is_head=True, is_per_layer=True, members="heads", is_cut=True
    ),
    "head_dim": Axis(field="head_dim"),
    "vocab": Axis(field="vocab_size", is_cut=True),
}
PRUNABLE_AXES = {name: axis for name, axis in AXES.items() if axis.is_prunable}
# By the axis of their members.
GROUP_AXES = {axis.members: name for name, axis in AXES.items() if axis.members}


@dataclass(frozen=True)
class Weight:
    """One stored tensor of a model or of a decoder layer: a matrix, or with no columns a vector.

    Attributes:
        name: Its name, relative to the model or to the layer, with `.weight` or `.bias`.
        rows: The axis of its rows by part (`q`, `gate`, ...); a fused projection has several parts, in order.
        columns: The axis of its columns.
        reads: What it multiplies; weights that read the same share their input.
    """

    name: str
    rows: Mapping[str, str]
    columns: str | None = None
    reads: str | None = None

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """`weight` or `bias`."""
        return self.name.rpartition(".")[2]
