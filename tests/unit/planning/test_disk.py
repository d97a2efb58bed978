"""What a run writes, stage by stage, in the dtype that it is stored in."""

from __future__ import annotations

from typing import Any

from compressor.models.presets import PRESETS
from compressor.planning.disk import DiskUse
from compressor.planning.plan import make_plan
from tests.unit.planning.test_cost import recipe


def test_the_disk_holds_stored_weights_in_their_dtype_and_the_rotation() -> None:
    teacher = PRESETS["llama3.1-8b"].dims

    def uses(**more: Any) -> dict[str, DiskUse]:
        settings = {"target": "60%", "distill.tokens": 8192, "sparsify.pattern": "2:4", **more}
        return {use.where: use for use in make_plan(recipe(**settings), teacher).disk}

    half, whole = uses(), uses(dtype="float32")
    for where in ("stages/prune", "stages/reconstruct", "stages/distill", "student"):
        assert whole[where].num_bytes == 2 * half[where].num_bytes
    # A mask is one bit of a weight, however this is stored.
    mask = half["stages/sparsify"].num_bytes - half["student"].num_bytes
    assert whole["stages/sparsify"].num_bytes == whole["student"].num_bytes + mask
    rotated = uses(**{"prune.hidden": "rotation"})
    for where in ("stages/prune", "stages/reconstruct"):
        more = rotated[where].num_bytes - rotated["student"].num_bytes
        assert more == 4 * 4096 * 4096 + 8 * 4096  # components in float32, variances in float64
