"""Students whose hidden size is reduced by rotation, planned: sizes by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.errors import CompressExportError, UnsupportedError, UsageError
from compressor.models.dims import Dims
from compressor.models.families import FAMILIES
from compressor.models.presets import PRESETS
from compressor.planning.plan import make_plan
from compressor.planning.target import TOLERANCE, resolve_target
from compressor.recipe.recipe import Recipe, load_recipe

LLAMA = PRESETS["llama3.1-8b"].dims
SMOLLM = PRESETS["smollm2-135m"].dims


def recipe(**fields: object) -> Recipe:
    given = {"model": "x", "prune.hidden": "rotation", "distill.tokens": 0, **fields}
    return load_recipe(None, given)


def counted(dims: Dims) -> int:
    """Parameters of a SmolLM2 with a head of its own, written out."""
    hidden, queries, keys = dims.hidden_size, 9 * 64, 3 * 64
    layer = (
        hidden * (queries + 2 * keys) + queries * hidden + 3 * hidden * dims.intermediate_size + 2 * hidden
    )
    return 2 * 49152 * hidden + dims.num_hidden_layers * layer + hidden


@pytest.mark.parametrize("target", ["80m", "60%", "95m", "80%"])
def test_the_target_counts_the_head(target: str) -> None:
    resolved = resolve_target(SMOLLM, target, rotates=True)
    student, wanted = resolved.student, resolved.requested_parameters
    assert wanted is not None
    assert abs(counted(student) - wanted) <= TOLERANCE * wanted
    assert student.hidden_size < SMOLLM.hidden_size
    assert not student.tie_word_embeddings
    assert "an LM head of its own" in resolved.rule


def test_the_plan_shows_the_head() -> None:
    plan = make_plan(recipe(**{"prune.shape": {"hidden_size": 432, "intermediate_size": 1024}}), SMOLLM)
    assert plan.student.num_parameters == counted(plan.student.dims) == 102_213_360
    assert plan.student.weight_bytes["bf16"] == 2 * 102_213_360
    fields = {"target": "60%", "calibration.size": 10**6}
    channels = make_plan(recipe(**fields, **{"prune.hidden": "channels"}), SMOLLM)
    rotation = make_plan(recipe(**fields), SMOLLM)
    assert channels.student.dims.tie_word_embeddings
    assert rotation.hours.stages["calibration"] == pytest.approx(
        2 * channels.hours.stages["calibration"], rel=1e-3
    )


def test_a_published_shape_with_a_head_of_its_own_stays_one() -> None:
    resolved = resolve_target(LLAMA, "4b", rotates=True)
    assert resolved.published == "4b-width"
    assert resolved.student == resolve_target(LLAMA, "4b").student


NEMOTRON = PRESETS["minitron-8b"].dims
TINY = SMOLLM.with_shape(hidden_size=16, num_attention_heads=1, num_key_value_heads=1, vocab_size=32)
REFUSALS: dict[str, tuple[Dims, dict[str, object], type[CompressExportError], str]] = {
    "layer norms": (NEMOTRON, {"target": "50%"}, UnsupportedError, "nemotron models cannot be reduced"),
    "depth alone": (LLAMA, {"target": "4b-depth"}, UsageError, "nothing to rotate"),
    "the same hidden size": (
        SMOLLM,
        {"prune.shape": {"intermediate_size": 512}},
        UsageError,
        "nothing to rotate",
    ),
    "no smaller": (SMOLLM, {"prune.shape": {"hidden_size": 567}}, UsageError, "would not be smaller"),
    "no grid": (TINY, {"target": "80%"}, UsageError, "no smaller hidden size"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_rotation_that_cannot_be_is_refused(name: str) -> None:
    teacher, fields, error, message = REFUSALS[name]
    with pytest.raises(error, match=message) as caught:
        make_plan(recipe(**fields), teacher)
    assert caught.value.where == "--hidden-removal rotation"
    assert caught.value.hint


def test_only_root_mean_squares_can_be_rotated() -> None:
    for name, family in FAMILIES.items():
        if family.rotatable:
            assert not family.norm_has_bias, name
            assert family.norm_offset == 0, name
            stream = [
                weight for weight in (*family.layer, *family.network) if "hidden" in weight.rows.values()
            ]
            assert all(weight.kind == "weight" for weight in stream), f"{name}: a bias of the stream"


def test_a_rotation_reads_the_calibration_text(tmp_path: Path) -> None:
    from compressor.core.console import Console
    from compressor.pipeline.preflight import require_texts

    text = tmp_path / "text.txt"
    text.write_text("a river and a stone")
    fields = {"prune.importance": "random", "repair.method": "off", "evaluate.data": str(text)}
    fields["calibration.data"] = str(tmp_path / "none.txt")
    require_texts(recipe(**fields, **{"prune.hidden": "channels"}), Console())
    with pytest.raises(UsageError, match=r"none\.txt"):
        require_texts(recipe(**fields), Console())
    saved = {**fields, "prune.importance": "activation", "prune.hidden": "channels"}
    with pytest.raises(UsageError, match=r"none\.txt"):
        require_texts(recipe(**saved), Console())
    require_texts(recipe(**saved, **{"prune.scores": "saved"}), Console())  # which measure nothing again
