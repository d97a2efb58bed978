"""Whether a run begins with a preflight, on how large a slice, and by which recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from compressor.core.console import Console
from compressor.core.errors import UnsupportedError
from compressor.models.dims import Dims
from compressor.models.presets import PRESETS
from compressor.models.source import ModelSource
from compressor.pipeline import preflight_plan, slice_run
from compressor.pipeline.family import plan_family, run_family
from compressor.pipeline.preflight_plan import CPU_CORE_FLOPS_PER_S, layers_of_slice, with_preflight
from compressor.pipeline.running import Start
from compressor.pipeline.slice_run import PREFLIGHT, preflight_fingerprint, run_preflight
from compressor.pipeline.small_recipe import slice_dims, small_run
from compressor.planning.cost import Hardware
from compressor.planning.plan import Plan, make_plan
from compressor.recipe.recipe import Recipe, load_recipe
from compressor.runs.artifact import ModelArtifact
from compressor.runs.manifest import open_run_directory

LLAMA = PRESETS["llama3.1-8b"].dims
TEACHER = ModelArtifact(
    path=Path("m"), stage="source", fingerprint="f", lineage=("source",), num_parameters=1
)


def planned(teacher: Dims = LLAMA, **choices: Any) -> tuple[Recipe, Plan]:
    given = {"model": "llama3.1-8b", "bench.runtime": "none", **choices}
    given |= {} if "prune.shape" in choices else {"target": "4b", **choices}
    recipe = load_recipe(None, given)
    return recipe, make_plan(recipe, teacher)


def small(**choices: Any) -> tuple[Recipe, Plan]:
    recipe, plan = planned(**choices)
    made = small_run(recipe, plan, model=Path("slice"), dims=slice_dims(recipe, plan))
    return made.recipe, made.plan


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_plan, "torch_sees_gpu", lambda: False)


@pytest.mark.parametrize(
    ("choices", "layers"),
    [
        ({"prune.shape": {"intermediate_size": 7168}}, (2, 2)),
        ({"prune.shape": {"num_hidden_layers": 16}}, (2, 1)),
        ({"prune.shape": {"num_hidden_layers": 20}, "interleave.cuts": 5}, (3, 1)),
        ({"prune.shape": {"intermediate_size": 7168}, "interleave.cuts": 5}, (2, 2)),
        ({"prune.shape": {"intermediate_size": 7168}, "export.tensorrt_llm": {"pp_size": 4}}, (4, 4)),
        ({"prune.shape": {"num_hidden_layers": 16}, "export.tensorrt_llm": {"pp_size": 4}}, (5, 4)),
        (
            {
                "prune.shape": {"num_hidden_layers": 16},
                "export.tensorrt_llm": {"pp_size": 4},
                "export.formats": ["huggingface"],
            },
            (2, 1),
        ),
    ],
)
def test_layers_of_the_slice(choices: dict[str, Any], layers: tuple[int, int]) -> None:
    assert layers_of_slice(*planned(**choices)) == layers
    recipe, plan = small(**choices)
    assert (plan.teacher.dims.num_hidden_layers, plan.student.dims.num_hidden_layers) == layers
    assert len(plan.cuts) == (2 if "interleave.cuts" in choices else 0)
    assert recipe.export_formats() == planned(**choices)[0].export_formats()


def test_auto_goes_by_the_hours_of_training_on_this_machine() -> None:
    flops_per_hour = 3600 * CPU_CORE_FLOPS_PER_S * len(os.sched_getaffinity(0))
    short = {"distill.context_length": 8, "distill.batch_size": 1}
    training = planned(**short, **{"distill.tokens": 8})[1].training
    assert training is not None
    for hours, runs in ((0.5, False), (2, True)):
        tokens = int(hours * flops_per_hour / training.phases[0].flops_per_token)
        recipe, plan = planned(**short, **{"distill.tokens": tokens})
        found = with_preflight(plan, recipe, None).preflight
        assert found is not None
        assert found.runs == runs
        assert found.training_hours == pytest.approx(hours, rel=0.02)
    named = with_preflight(plan, recipe, Hardware(gpu="h100", num_gpus=8)).preflight
    assert named is not None
    assert not named.runs  # seconds there
    assert named.machine == "8 x NVIDIA H100 80GB SXM"


@pytest.mark.parametrize(
    ("choice", "num_layers", "runs"), [("on", 3, True), ("on", 2, False), ("off", 32, False)]
)
def test_it_can_be_asked_for_and_turned_off(choice: str, num_layers: int, runs: bool) -> None:
    teacher = LLAMA.with_shape(num_hidden_layers=num_layers)
    recipe, plan = planned(teacher, **{"preflight": choice, "prune.shape": {"intermediate_size": 7168}})
    found = with_preflight(plan, recipe, None).preflight
    assert found is not None
    assert found.runs == runs
    if num_layers == 2:
        assert "all of it" in found.reason


def test_sizes_shrink_and_choices_stay() -> None:
    choices = {
        "calibration.data": "corpus",
        "distill.loss": "reverse-kl",
        "distill.correction": {"mode": "first", "tokens": 10**9, "warmup_steps": 9},
        "distill.generate": {"tokens": 10**6},
        "distill.warmup_steps": 9,
        "distill.report_to": ["wandb"],
        "distill.layer_pairs": [[29, 27]],
        "distill.hidden_state_loss": "mse",
        "sparsify.pattern": "2:4",
        "sparsify.method": "ast",
        "sparsify.mask_interval": 50,
        "quantize.fp8": True,
        "repair.steps": 200,
        "export.int4_min_top1": 0.9,
        "gates.kl": 0.1,
    }
    recipe, plan = small(**choices)
    assert [phase.name for phase in plan.training.phases] == ["correct", "distill", "recover"]  # type: ignore[union-attr]
    assert {phase.steps for phase in plan.training.phases} == {1}  # type: ignore[union-attr]
    assert plan.training.phases[0].context_length == 128  # type: ignore[union-attr]
    assert (recipe.calibration.data, recipe.calibration.size) == ("corpus", 3)
    assert (recipe.distill.loss, recipe.distill.hidden_state_loss) == ("reverse-kl", "mse")
    assert (recipe.distill.correction.mode, recipe.distill.report_to) == ("first", ())
    assert (recipe.sparsify.pattern, recipe.sparsify.method) == ("2:4", "ast")
    assert recipe.quantize.fp8
    assert recipe.repair.steps == 1
    # What only the whole model can reach is no error of a slice.
    assert (recipe.export.int4_min_top1, recipe.gates.demanded()) == (None, ())
    assert plan.student.dims.hidden_size == planned(**choices)[1].student.dims.hidden_size


def test_states_are_compared_where_the_run_does() -> None:
    """Of a slice a large part is cut, whatever the run cuts of the model."""
    shapes = {"off": {"num_hidden_layers": 28}, "auto": {"num_hidden_layers": 16}}
    for expected, shape in shapes.items():
        assert small(**{"prune.shape": shape})[0].distill.hidden_state_loss == expected


def test_where_only_responses_count_there_is_text_enough_to_hold_one() -> None:
    recipe, plan = small(**{"distill.loss_on": "responses", "distill.context_length": 4096})
    assert (recipe.distill.context_length, recipe.distill.batch_size) == (512, 16)
    assert [phase.steps for phase in plan.training.phases] == [1]  # type: ignore[union-attr]


def test_what_belongs_to_the_whole_model_is_left_out_and_said(tmp_path: Path) -> None:
    recipe, plan = planned(**{"distill.teacher_logits": "stored", "distill.layer_pairs": None})
    made = small_run(recipe, plan, model=tmp_path, dims=slice_dims(recipe, plan))
    assert made.recipe.distill.teacher_logits is None
    assert [text.partition(" (")[0] for text in made.left_out] == ["stored logits"]


def test_a_search_tries_two_shapes() -> None:
    _, plan = small(target="60%", **{"search.candidates": 6})
    assert plan.search is not None
    assert 1 <= len(plan.search.candidates) <= 2
    assert {shape.num_hidden_layers for shape in plan.search.candidates} <= {1, 2}


def test_a_family_is_tried_before_its_first_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(None, {"model": "llama3.1-8b", "target": "6b,4b", "bench.runtime": "none"})
    plan = plan_family(recipe, LLAMA, out_dir=str(tmp_path / "out"))
    asked = []

    def stop(*_arguments: object, ahead: list[tuple[Recipe, Plan]]) -> None:
        asked.append([own.student.dims for _, own in ahead])
        raise UnsupportedError("stop")

    monkeypatch.setattr("compressor.pipeline.pipeline.run_pipeline", stop)
    source = ModelSource(given="m", kind="directory", location="m")
    with pytest.raises(UnsupportedError, match="stop"):
        run_family(source, plan, tmp_path / "out", Console(), Start())
    assert asked == [[member.plan.student.dims for member in plan.members]]


@pytest.mark.parametrize(
    ("recorded", "choice", "tried"),
    [
        (None, "auto", True),
        ("passed", "auto", False),
        ("passed", "on", False),
        ("failed", "auto", True),
        ("another", "auto", True),
    ],
)
def test_one_that_passed_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str | None, choice: str, tried: bool
) -> None:
    members = [planned(preflight=choice)]
    calls: list[object] = []
    monkeypatch.setattr(slice_run, "_try", lambda *arguments, **_named: calls.append(arguments))
    source = ModelSource(given="m", kind="directory", location="m")
    fingerprint = preflight_fingerprint(members, TEACHER)
    (tmp_path / "out" / PREFLIGHT).mkdir(parents=True)
    with open_run_directory(tmp_path / "own", resume=False, overwrite=False) as manifest:
        if recorded:
            progress = slice_run._Progress()
            own = "0" if recorded == "another" else fingerprint
            manifest.update(preflight=progress.record(own, "x" if recorded == "failed" else None))
        run_preflight(members, source, TEACHER, tmp_path / "out", manifest, Console())
        assert bool(calls) == tried
        assert manifest.record.preflight is not None
        assert manifest.record.preflight.passed
    assert not (tmp_path / "out" / PREFLIGHT).exists()  # of one that was killed


def test_what_no_preflight_depends_on_makes_no_other_one() -> None:
    """How often a checkpoint is saved and where a training is logged; which Python converts does."""
    given, logged = planned(), planned(**{"distill.save_steps": 7, "distill.report_to": "tensorboard"})
    other = planned(**{"export.edge_llm.python": "/other/python"})
    of_given, of_logged, of_other = (preflight_fingerprint([one], TEACHER) for one in (given, logged, other))
    assert of_given == of_logged != of_other


def test_a_run_that_went_without_one_has_one_only_when_asked(tmp_path: Path) -> None:
    with open_run_directory(tmp_path / "own", resume=False, overwrite=False) as manifest:
        manifest.record = manifest.record.model_copy(update={"stages": {"stages/prune": None}})
        assert not slice_run._is_due([planned()], manifest, "f")
        assert slice_run._is_due([planned(preflight="on")], manifest, "f")


def test_a_run_that_went_on_after_a_failed_one_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed, then `--preflight off` for the first stage, then the same command without that option."""
    monkeypatch.setattr(slice_run, "_try", lambda *_arguments, **_named: pytest.fail("it was repeated"))
    members, console = [planned()], Console()
    source = ModelSource(given="m", kind="directory", location="m")
    with open_run_directory(tmp_path / "own", resume=False, overwrite=False) as manifest:
        failed = slice_run._Progress().record(preflight_fingerprint(members, TEACHER), "no kernel")
        manifest.update(preflight=failed)
        run_preflight([], source, TEACHER, tmp_path / "out", manifest, console)
        assert [warning for warning in console.warnings if "no kernel" in warning]
        manifest.record = manifest.record.model_copy(update={"stages": {"stages/prune": None}})
        run_preflight(members, source, TEACHER, tmp_path / "out", manifest, console)
        assert manifest.record.preflight is None
