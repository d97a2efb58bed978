"""The whole run: what it would do, and doing it."""

from __future__ import annotations

from pathlib import Path

from compressor.api.execution import Execution
from compressor.api.layer_times import measure_layers
from compressor.api.outcome import needs_measuring, resolve
from compressor.core.errors import UsageError
from compressor.core.hardware import GPUS, Gpu
from compressor.core.processes import on_main
from compressor.masks.choice import require_maskable
from compressor.models.dims import Dims
from compressor.models.source import plan_dims, resolve_source, short_name
from compressor.pipeline.bench_plan import with_bench
from compressor.pipeline.consistency import require_consistent, require_sparsifiable
from compressor.pipeline.family import FamilyPlan, FamilyRecord, plan_family, run_family, split_targets
from compressor.pipeline.gate_choices import require_feasible
from compressor.pipeline.measurable import require_measurable
from compressor.pipeline.preflight_plan import with_preflight
from compressor.pipeline.promise import question_of, require_one_size
from compressor.pipeline.running import Start
from compressor.pipeline.summary import RunSummary
from compressor.planning.cost import Hardware, training_phases
from compressor.planning.depth import require_removal
from compressor.planning.plan import Plan, make_plan
from compressor.planning.runtime_choice import choose_runtime, with_runtime
from compressor.planning.search_plan import require_searchable
from compressor.recipe.recipe import Recipe
from compressor.sparsity.requirements import require_sparse_shape


def plan(
    recipe: Recipe,
    out_dir: Path | None = None,
    *,
    hardware: Hardware | None = None,
    gpu: str | None = None,
    anew: bool = False,
) -> Plan | FamilyPlan:
    """Resolve a recipe: shapes, memory, disk, hours and costs; a family where it names several targets.

    Needs neither network nor weights of a published model. A target by speed is resolved by the layer times
    that a run has measured on this machine, without them by a roofline, and with `gpu` for that one; a run
    that has begun in `out_dir` keeps its student, unless it begins `anew`.

    Raises:
        UsageError: for several of a target, a target by outcome and an explicit shape; for an outcome that no
            student is predicted to reach; for choices that contradict each other or have no effect.
        UnsupportedError: for a local model, or a sparse model's branch, that a format cannot express; for
            learned masks of a shape with fewer key/value heads; for FP8 products on a GPU without them.
    """
    where = out_dir or default_output(recipe)
    teacher = plan_dims(recipe.model)
    runtime = choose_runtime(recipe, gpu=gpu)
    recipe = with_runtime(recipe, runtime)
    _require_sound(recipe, teacher, GPUS.get(gpu) if gpu else None)
    if len(split_targets(recipe.target)) > 1:
        family = plan_family(
            recipe,
            teacher,
            hardware=hardware,
            out_dir=str(where),
            runtime=runtime,
            machine=hardware if gpu else None,
        )
        require_removal(recipe.prune, teacher, (member.plan.student.dims for member in family.members))
        for member in family.members:
            _require_reachable(member.plan, recipe)
        return family
    resolved = resolve(recipe, teacher, where, hardware=hardware or Hardware(), gpu=gpu, anew=anew)
    found, promise = resolved or (None, None)
    made = make_plan(
        recipe,
        teacher,
        hardware=hardware,
        out_dir=str(where),
        found=found,
        promise=promise,
        runtime=runtime,
    )
    made = with_preflight(with_bench(made, recipe, hardware), recipe, hardware if gpu else None)
    _require_reachable(made, recipe)
    require_removal(recipe.prune, teacher, made.possible_students())
    if Path(recipe.model).is_dir():
        # Reads the config again, with libraries that a published model's plan does without.
        from compressor.models.checkpoint import read_config
        from compressor.pipeline.preflight import require_expressible

        for student in made.possible_students():
            require_expressible(recipe, read_config(Path(recipe.model)), student)
    return made


def _require_sound(recipe: Recipe, teacher: Dims, gpu: Gpu | None = None) -> None:
    """Refuse choices that contradict each other, or that have no effect."""
    require_one_size(recipe)
    require_searchable(recipe, teacher)
    require_consistent(recipe)
    require_sparsifiable(recipe)
    require_measurable(recipe, gpu)


def _require_reachable(plan: Plan, recipe: Recipe) -> None:
    """Refuse a student that the recipe's masks, sparsity, losses or gates are impossible for."""
    require_feasible(recipe, plan)
    for student in plan.possible_students():
        require_sparse_shape(recipe.sparsify, student)
        if recipe.distill.tokens and recipe.distill.layer_pairs:
            from compressor.distillation.choice import choose_losses  # with torch

            choose_losses(
                recipe.distill,
                num_teacher_layers=plan.teacher.dims.num_hidden_layers,
                num_student_layers=student.num_hidden_layers,
                has_stored_logits=recipe.distill.teacher_logits is not None,
            )
    if recipe.mask_tokens():
        require_maskable(plan.teacher.dims, plan.student.dims)


def settle(recipe: Recipe, out_dir: Path | None = None, *, execution: Execution) -> Plan | FamilyPlan:
    """The plan of a run that is to be made: layer times that its target needs are measured first.

    Raises:
        CompressExportError: before they are, for what would end the run later.
    """
    where, teacher = out_dir or default_output(recipe), plan_dims(recipe.model)
    chosen = on_main(lambda: with_runtime(recipe, choose_runtime(recipe)))
    _require_sound(chosen, teacher)
    question = question_of(chosen)
    if question is None:
        return plan(recipe, where, anew=execution.overwrite)
    training_phases(chosen, teacher, teacher, 1)  # refuses a token budget, whatever the student
    if on_main(lambda: needs_measuring(chosen, question, teacher, where, anew=execution.overwrite)):
        from compressor.pipeline.pipeline import check_choices
        from compressor.pipeline.preflight import require_texts

        resolve_source(recipe.model)
        check_choices(chosen, teacher)
        on_main(lambda: require_texts(chosen, execution.console))
        on_main(lambda: measure_layers(chosen, question, teacher, where, execution.console))
    # Rates that every process measured by itself could lead to different students.
    return on_main(lambda: plan(recipe, where, anew=execution.overwrite))


def run(
    recipe: Recipe,
    out_dir: Path | None = None,
    *,
    restart_from: str | None = None,
    execution: Execution | None = None,
) -> RunSummary | FamilyRecord:
    """Prune, distill, sparsify, quantize, export, verify and benchmark a model, or a family of models.

    The recipe's environment goes before the execution's; the run's directory is by default named after model
    and target. `restart_from` discards the output of this stage and of all later ones first.

    Raises:
        UsageError: for a stage that does not exist.
    """
    from compressor.pipeline.pipeline import run_pipeline
    from compressor.pipeline.steps import STAGES

    execution = execution or Execution()
    if restart_from not in (None, *STAGES):
        raise UsageError(
            f"unknown stage {restart_from!r}",
            where="--restart-from",
            expected=", ".join(STAGES),
            hint="name one of the expected stages",
        )
    where = out_dir or default_output(recipe)
    made = settle(recipe, where, execution=execution)
    source = resolve_source(recipe.model)
    start = Start(
        resume=execution.resume,
        overwrite=execution.overwrite,
        restart_from=restart_from,
        check=execution.check,
    )
    if isinstance(made, FamilyPlan):
        return run_family(source, made, where, execution.console, start)
    assert made.runtime is not None, "a plan of this library has one"
    return run_pipeline(with_runtime(recipe, made.runtime), source, made, where, execution.console, start)


def default_output(recipe: Recipe) -> Path:
    """`./llama3.1-8b-4b-fp8` for `llama3.1-8b --target 4b --fp8`; a family's targets follow each other."""
    goals = [f"{goal}-{target:g}" for goal, target in recipe.outcome.goals.items()]
    named = (
        (recipe.target or "-".join(goals) or "shape").replace("%", "pct").replace(",", "-").replace(" ", "")
    )
    parts = [short_name(recipe.model), named, *(["fp8"] if recipe.quantize.fp8 else [])]
    return Path("-".join(parts))
