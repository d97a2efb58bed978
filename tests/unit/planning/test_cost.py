"""Every figure by hand, on a model small enough to count."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from compressor.core.errors import UsageError
from compressor.core.hardware import GPUS
from compressor.distillation.correct_stage import correction_settings
from compressor.distillation.training import schedule
from compressor.models.dims import Dims, dims_of_config, flops_per_token, num_parameters
from compressor.models.presets import PRESETS
from compressor.planning.cost import (
    Hardware,
    TrainingEstimate,
    sampling_flops,
    step_seconds,
    training_estimate,
    training_phases,
)
from compressor.planning.disk import DiskUse, disk_uses, peak_disk_bytes
from compressor.planning.plan import Plan, make_plan
from compressor.planning.schedule import Phase, Schedule, activation_bytes_per_token, memory_per_gpu
from compressor.planning.stage_memory import CHILD, LIBRARIES
from compressor.recipe.recipe import Correction, Distill, Recipe, load_recipe
from tests.tiny_models import make_model

# One layer: q and o 2 x 8 x 8, k and v 2 x 8 x 4, three MLP matrices of 8 x 16; head 32 x 8.
SMALL = Dims(
    model_type="llama",
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=32,
    tie_word_embeddings=False,
)
LARGE = SMALL.with_shape(num_hidden_layers=2)
LINEAR = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16
HEAD = 32 * 8
P_SMALL = LINEAR + 3 * 8 + 2 * HEAD
P_LARGE = 2 * LINEAR + 5 * 8 + 2 * HEAD
WHERE: dict[str, Any] = {"seed": 0, "device": "cpu", "dtype": "float32"}
# Two per weight, and per layer 2 (scores and values) x 2 x 8 query channels x 10 attended tokens.
FORWARD_SMALL = 2 * (LINEAR + HEAD) + 4 * 8 * 10
FORWARD_LARGE = 2 * (2 * LINEAR + HEAD) + 2 * 4 * 8 * 10


def phase(**changes: Any) -> Phase:
    fields = {
        "name": "distill",
        "student": SMALL,
        "teacher": LARGE,
        "schedule": Schedule(steps=5, batch_size=12, micro_batch_size=1, warmup_steps=0),
        "context_length": 20,
        **changes,
    }
    return Phase(**fields)


def recipe(**overrides: Any) -> Recipe:
    return load_recipe(None, {"model": "llama3.1-8b", "target": "4b-width", **overrides})


def estimate(found: Recipe, hardware: Hardware | None = None) -> TrainingEstimate:
    teacher, student = PRESETS["llama3.1-8b"].dims, PRESETS["4b-width"].dims
    made = training_estimate(found, teacher, student, hardware or Hardware(), origin=teacher)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, FORWARD_LARGE + 3 * FORWARD_SMALL),
        ({"teacher": None}, 3 * FORWARD_SMALL),
        ({"recomputes": True}, FORWARD_LARGE + 4 * FORWARD_SMALL),
        ({"trains_teacher": True}, 3 * FORWARD_LARGE + 3 * FORWARD_SMALL),
        ({"trains_teacher": True, "recomputes": True}, 4 * FORWARD_LARGE + 4 * FORWARD_SMALL),
    ],
)
def test_flops_per_token(changes: dict[str, Any], expected: int) -> None:
    assert phase(**changes).flops_per_token == expected


@pytest.mark.parametrize(
    ("alias", "published"), [("nemotron4-15b", 4.4e17), ("minitron-8b", 2.5e17), ("minitron-4b", 1.2e17)]
)
def test_flops_per_step_are_the_published_ones(alias: str, published: float) -> None:
    """Minitron, arXiv 2407.14679: batch 1152 at 4096 tokens; theirs count the input embedding as well."""
    alone = phase(student=PRESETS[alias].dims, teacher=None, context_length=4096)
    assert alone.flops_per_token * 1152 * 4096 == pytest.approx(published, rel=0.12)


def test_step_time_is_that_of_the_fullest_gpu() -> None:
    hardware = Hardware(gpu="a100", utilisation=0.5)
    flops = FORWARD_LARGE + 3 * FORWARD_SMALL

    assert step_seconds(phase(), hardware, 4) == pytest.approx(3 * 20 * flops / (312e12 * 0.5))
    assert step_seconds(phase(), hardware, 5) == step_seconds(phase(), hardware, 4)
    row = estimate(recipe(**{"distill.batch_size": 12}), Hardware(num_gpus=5)).on(5)
    assert row.windows_per_gpu == {"distill": 3}


def test_memory_on_one_gpu() -> None:
    tokens = 20
    parts = memory_per_gpu(phase(), 1, recomputes=False)
    layer = 2 * (4 * 8 + 3 * 8 + 3 * 4 + 4 * 16) + 4 * 2 * 8

    assert parts["weights"] == parts["gradients"] == 4 * P_SMALL
    assert parts["optimizer"] == 8 * P_SMALL
    assert parts["teacher"] == 2 * P_LARGE
    assert parts["whole_weights"] == 2 * P_SMALL
    assert parts["activations"] == tokens * layer + tokens * 2 * (2 * 8 + 3 * 16)
    assert parts["loss"] == 4 * (6 * tokens * 32 + 32 * 8)
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")


def test_sharding_cuts_what_is_kept_and_gathers_what_is_used() -> None:
    one, four = (memory_per_gpu(phase(), count, recomputes=False) for count in (1, 4))

    for name in ("weights", "gradients", "optimizer", "teacher"):
        assert four[name] == math.ceil(one[name] / 4)
    student = 2 * HEAD + LINEAR + 3 * 8
    teacher = 2 * HEAD + 2 * LINEAR + 5 * 8
    assert four["whole_weights"] == 2 * (2 * student + teacher)
    assert four["activations"] == one["activations"]
    assert memory_per_gpu(phase(sharded=False), 4, recomputes=False) == one


def test_checkpointing_keeps_layer_inputs_and_one_layer() -> None:
    deep = SMALL.with_shape(num_hidden_layers=6)
    plain, recomputed = (
        memory_per_gpu(phase(student=deep, teacher=None), 1, recomputes=recomputes)["activations"]
        for recomputes in (False, True)
    )
    assert plain == 6 * 20 * activation_bytes_per_token(deep)
    assert recomputed == 20 * activation_bytes_per_token(deep) + 6 * 20 * 2 * 8


def test_a_trained_teacher_costs_what_a_student_costs() -> None:
    parts = memory_per_gpu(phase(trains_teacher=True), 1, recomputes=False)
    assert parts["optimizer"] == 8 * (P_SMALL + P_LARGE)
    assert parts["teacher"] == 0


@pytest.mark.parametrize("model_type", ["llama", "nemotron"])
def test_activations_are_what_autograd_saves(model_type: str) -> None:
    """Storages saved for backward by a real bf16 model, weights left out, within 15 %."""
    shape = {"hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 6, "head_dim": 32}
    model = make_model(model_type, **shape).to(torch.bfloat16).train().requires_grad_()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=torch.zeros(1, 256, dtype=torch.int64))
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    dims = dims_of_config(model.config.to_dict())
    assert activation_bytes_per_token(dims) * 256 * 6 == pytest.approx(saved, rel=0.15)


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 0), (0.1, 24), (0.25, 60), (1.0, 240)])
def test_a_warm_up_is_that_fraction_of_the_steps(ratio: float, steps: int) -> None:
    config = Distill(tokens=240 * 2 * 256, context_length=256, batch_size=2, warmup_ratio=ratio)
    assert schedule(config, **WHERE).warmup_steps == steps


def test_plan_and_training_spend_a_budget_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every combination by brute force: windows are seen whole, and the plan says what the trainer does."""
    budgets, processes = (4096, 61440, 999_999, 1_800_000_000), (1, 2, 3, 8)
    for tokens, count, batch, micro in itertools.product(budgets, processes, (None, 4, 24, 1150), (1, 2, 3)):
        given = {"tokens": tokens, "context_length": 256, "batch_size": batch, "micro_batch_size": micro}
        config = Distill(**given, correction=Correction(mode="first", tokens=3 * tokens))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        planned = training_phases(recipe(distill=config.model_dump()), LARGE, SMALL, count)
        made = (correction_settings(config, **WHERE), schedule(config, **WHERE))
        for phase, trained in zip(planned, made, strict=True):
            found = phase.schedule
            assert (found.steps, found.batch_size) == (trained.max_steps, trained.batch_size)
            assert found.micro_batch_size == trained.micro_batch_size
            assert found.warmup_steps == trained.warmup_steps
            budget = {"correct": 3 * tokens, "distill": tokens}[phase.name]
            windows = budget // 256
            assert windows - found.batch_size < found.steps * found.batch_size <= windows
            per_process = math.ceil(found.batch_size / count)
            assert found.micro_batch_size <= micro
            assert per_process % found.micro_batch_size == 0


def test_a_budget_below_one_window_is_refused_by_the_plan() -> None:
    with pytest.raises(UsageError, match="does not fill one training sequence"):
        estimate(recipe(**{"distill.tokens": 4095}))


def test_the_published_run_against_training_from_scratch() -> None:
    made = estimate(recipe(**{"distill.tokens": 94_000_000_000, "distill.context_length": 8192}))
    scratch, own = made.from_scratch, made.phases[0]

    assert "15T, as cited by arXiv 2408.11796" in scratch.tokens_rule
    assert scratch.phase.tokens == pytest.approx(15e12, rel=1e-3)
    assert scratch.tokens_ratio == pytest.approx(15e12 / 94e9, rel=1e-3)
    expected = scratch.phase.tokens * scratch.phase.flops_per_token / (own.tokens * own.flops_per_token)
    assert scratch.gpu_hours_ratio == pytest.approx(expected, rel=1e-2)


def test_an_unknown_origin_is_counted_at_twenty_tokens_per_parameter() -> None:
    small = PRESETS["4b-width"].dims
    made = training_estimate(recipe(), PRESETS["llama3.1-8b"].dims, small, Hardware(), origin=small)
    assert made is not None
    assert made.from_scratch.phase.tokens == pytest.approx(20 * num_parameters(small), rel=1e-3)
    assert "2203.15556" in made.from_scratch.tokens_rule


def test_rows_agree_with_steps_and_price() -> None:
    made = estimate(recipe(), Hardware(num_gpus=24, gpu_hour_price=2.5))

    assert [row.num_gpus for row in made.by_num_gpus] == [1, 8, 24, 64, 256, 1024]
    steps = made.phases[0].steps
    for row in made.by_num_gpus:
        assert row.hours == pytest.approx(steps * row.step_s["distill"] / 3600, rel=1e-3)
        assert row.gpu_hours == pytest.approx(row.hours * row.num_gpus, rel=1e-3)
        assert row.cost_usd == pytest.approx(2.5 * row.gpu_hours, rel=1e-3)
    assert made.price_is_assumed is False
    assert estimate(recipe()).gpu_hour_price_usd == GPUS["h100"].assumed_hour_price


def test_what_fits_in_memory() -> None:
    long = {"distill.batch_size": 1152, "distill.micro_batch_size": 4}
    for given, count, fits in (({}, 1, (False, False)), ({}, 8, (True, True)), (long, 8, (False, True))):
        row = estimate(recipe(**given)).on(count)
        assert (row.fits, row.fits_with_checkpointing) == fits


def test_correction_before_distillation_is_a_training_of_the_teacher() -> None:
    settings = {"distill.correction": {"mode": "first", "tokens": 1_000_000_000}}
    found = training_phases(recipe(**settings), LARGE, SMALL, 1)

    assert [(one.name, one.student, one.teacher) for one in found] == [
        ("correct", LARGE, None),
        ("distill", SMALL, LARGE),
    ]
    assert found[0].tokens == pytest.approx(1_000_000_000, rel=0.01)
    row = estimate(recipe(**settings)).on(1)
    assert row.hours == pytest.approx(sum(row.phase_hours.values()), rel=1e-3)
    assert set(row.phase_hours) == {"correct", "distill"}


def test_other_trainings_of_a_recipe() -> None:
    alongside = training_phases(recipe(**{"distill.correction": {"mode": "alongside"}}), LARGE, SMALL, 1)
    assert [(one.name, one.trains_teacher) for one in alongside] == [("distill", True)]
    offline = training_phases(recipe(**{"distill.teacher_logits": "logits"}), LARGE, SMALL, 1)
    assert [(one.name, one.teacher) for one in offline] == [("distill", None)]
    sparse = training_phases(recipe(**{"sparsify.pattern": "2:4", "sparsify.tokens": 10**9}), LARGE, SMALL, 1)
    assert [one.name for one in sparse] == ["distill", "recover"]
    assert training_phases(recipe(**{"distill.tokens": 0}), LARGE, SMALL, 1) == ()
    assert training_estimate(recipe(**{"distill.tokens": 0}), LARGE, SMALL, Hardware(), origin=LARGE) is None


def test_sampled_text_is_counted() -> None:
    settings = {"tokens": 1000, "max_new_tokens": 12, "prompt_tokens": 8}
    alone = recipe(**{"distill.generate": settings})
    prompted = recipe(**{"distill.generate": {**settings, "prompts": "text.txt"}})

    assert sampling_flops(alone, LARGE) == 1000 * FORWARD_LARGE
    assert sampling_flops(prompted, LARGE) == (1000 + 84 * 8) * FORWARD_LARGE
    rows = estimate(alone).by_num_gpus
    assert set(rows[0].phase_hours) == {"distill", "generate"}
    assert len({row.phase_hours["generate"] for row in rows}) == 1  # one process samples


def test_gradient_steps_keep_what_parts_read_and_give() -> None:
    given = {"repair.method": "least-squares", "repair.size": 10, "calibration.seq_len": 100}
    plain, stepped = (
        disk_uses(load_recipe(None, {"model": "m", **given, "repair.steps": n}), LARGE, SMALL, converts=False)
        for n in (0, 5)
    )
    more = stepped[1].temporary_bytes - plain[1].temporary_bytes
    assert stepped[1].stage == "reconstruct"
    assert more == 2 * 10 * 100 * SMALL.hidden_size * 4


def test_the_disk_holds_every_training_and_every_domain() -> None:
    teacher, student = (num_parameters(PRESETS[name].dims) for name in ("llama3.1-8b", "4b-width"))

    def uses(**distill: Any) -> dict[str, DiskUse]:
        settings = {f"distill.{name}": value for name, value in distill.items()}
        made = make_plan(recipe(**{"distill.tokens": 8192, **settings}), PRESETS["llama3.1-8b"].dims)
        return {use.where: use for use in made.disk}

    first, alongside = (uses(correction={"mode": mode}) for mode in ("first", "alongside"))
    assert first["stages/correct"].num_bytes == 2 * teacher
    assert first["stages/correct"].temporary_bytes == 24 * teacher + 4 * 8192
    assert alongside["stages/distill"].temporary_bytes == 24 * (teacher + student) + 4 * 8192
    domains = [{"name": name, "data": f"{name}.txt"} for name in ("web", "code")]
    moving = uses(domains=domains, dynamic_batches={"variant": "clipped"})["stages/distill"]
    assert moving.temporary_bytes == 24 * student + 2 * 4 * 8192


def test_repairs_take_time_and_room_by_hand() -> None:
    """Teacher once and student three times; steps of 4 sequences there and back; hidden states on disk."""
    teacher, student = PRESETS["llama3.1-8b"].dims, PRESETS["4b-width"].dims
    text = {"calibration.size": 64, "calibration.seq_len": 512, "distill.tokens": 0}

    def planned(**more: Any) -> Plan:
        return make_plan(recipe(**text, **more), teacher)

    plain = planned(**{"sparsify.pattern": "2:4"})
    stepped = planned(**{"sparsify.pattern": "2:4", "repair.steps": 100})
    ours, theirs = (flops_per_token(dims, 256) for dims in (student, teacher))
    rate = Hardware().device.bf16_flops_per_s * Hardware().utilisation * Hardware().num_gpus * 3600
    passes = {"reconstruct": theirs + 3 * ours, "reconstruct-sparse": 4 * ours}
    for name, flops in passes.items():
        assert plain.hours.stages[name] == pytest.approx(64 * 512 * flops / rate, abs=1e-4)
        steps = stepped.hours.stages[name] - plain.hours.stages[name]
        assert steps == pytest.approx(100 * 4 * 512 * 3 * ours / rate, abs=2e-4)
    assert "reconstruct-sparse" not in planned().hours.stages
    fp8 = {"quantize.fp8": True, "repair.steps": 100}
    rounded, unrepaired = planned(**fp8, **{"repair.fp8": True}), planned(**fp8)
    assert rounded.hours.stages["reconstruct-fp8"] == pytest.approx(64 * 512 * 6 * ours / rate, abs=1e-4)
    assert "reconstruct-fp8" not in unrepaired.hours.stages
    own = next(use for use in rounded.disk if use.where == "stages/reconstruct-fp8")
    assert own.num_bytes == next(use for use in rounded.disk if use.where == "stages/quantize").num_bytes
    assert own.temporary_bytes == 4 * 64 * 512 * 2 * student.hidden_size + 2 * num_parameters(student)
    assert own.where not in {use.where for use in unrepaired.disk}

    uses = {use.where: use for use in stepped.disk}
    weights = 2 * num_parameters(student)
    states = 4 * 64 * 512 * (teacher.hidden_size + 3 * student.hidden_size)
    assert uses["stages/reconstruct"].num_bytes == weights
    assert uses["stages/reconstruct"].temporary_bytes == weights + states
    assert uses["stages/reconstruct-sparse"].num_bytes == weights + weights // 16


def test_a_gguf_file_and_the_teachers_graphs_take_room_and_memory() -> None:
    teacher = PRESETS["llama3.1-8b"].dims
    formats = {"export.formats": ["huggingface", "onnx"], "distill.tokens": 0, "repair.method": "off"}
    plain = make_plan(recipe(**formats), teacher)
    converted = make_plan(recipe(**formats, model="model.gguf"), teacher)
    assert converted.disk_bytes - plain.disk_bytes == 2 * num_parameters(teacher)
    graph = next(use for use in plain.disk if use.where == "stages/teacher-onnx")
    assert graph.num_bytes == 4 * num_parameters(teacher)
    # The builder of the teacher's graph, the 16-bit weights that it reads, and its own twice.
    assert plain.memory_bytes["bench"] == LIBRARIES + CHILD + (2 + 2 * 4) * num_parameters(teacher)
    without = make_plan(recipe(**formats, **{"bench.runtime": "none"}), teacher)
    assert "bench" not in without.memory_bytes
    assert plain.disk_bytes - without.disk_bytes == graph.num_bytes


def test_the_disk_is_full_when_the_most_is_there_at_once() -> None:
    uses = [
        DiskUse(stage="prune", where="a", num_bytes=10),
        DiskUse(stage="distill", where="b", num_bytes=10, temporary_bytes=100),
        DiskUse(stage="export", where="c", num_bytes=10),
    ]
    assert peak_disk_bytes(uses) == 120


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown GPU 'b300'"):
        estimate(recipe(), Hardware(gpu="b300"))


def test_scores_take_the_passes_of_their_method() -> None:
    """One forward; with gradients a backward pass as well, of twice the cost; nothing without a text."""
    teacher = PRESETS["llama3.1-8b"].dims

    def hours(**more: Any) -> float:
        settings = {"calibration.size": 10_000, **more}
        return make_plan(recipe(**settings), teacher).hours.stages["calibration"]

    forward = hours()
    assert hours(**{"prune.importance": "taylor"}) == pytest.approx(3 * forward, abs=2e-4)  # rounded
    for method in ("random", "weight-magnitude", "learned-masks"):
        assert hours(**{"prune.importance": method}) == 0
    assert hours(**{"prune.scores": "somewhere"}) == 0
