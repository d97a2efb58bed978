"""From a target by outcome to a shape: by measured layer times of this machine, else by a roofline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.api.layer_times import key_of, times_directory
from compressor.choices.runtimes import CHECKPOINT
from compressor.core.errors import UsageError, VerificationError
from compressor.core.hardware import resolve_device
from compressor.models.dims import Dims
from compressor.pipeline.promise import question_of
from compressor.planning.cost import Hardware
from compressor.planning.layer_times import LayerTimes, read_times
from compressor.planning.outcome import Predictor, Promise, Question, memory_predictor, resolve_outcome
from compressor.planning.plan import read_plan
from compressor.planning.target import ResolvedTarget
from compressor.recipe.recipe import Recipe
from compressor.runs.manifest import PLAN_FILE

if TYPE_CHECKING:
    from bench.report.results import Rates

Resolved = tuple[ResolvedTarget, Promise]


def resolve(
    recipe: Recipe, teacher: Dims, out_dir: Path, *, hardware: Hardware, gpu: str | None, anew: bool = False
) -> Resolved | None:
    """The student that a target by outcome asks for; None where the recipe names a size.

    A run that has begun in `out_dir` for the same question keeps its student, unless it begins `anew`.
    Speeds are those of this machine, or of the `gpu` that is named.

    Raises:
        UsageError: as `resolve_outcome` and `question_of` do.
    """
    question = question_of(recipe, on_gpu=gpu is not None)
    if question is None:
        return None
    if not anew and gpu is None and (begun := _begun(question, teacher, out_dir)):
        return begun
    return resolve_outcome(
        teacher, question, _predictor(recipe, question, teacher, out_dir, hardware=hardware, gpu=gpu)
    )


def needs_measuring(recipe: Recipe, question: Question, teacher: Dims, out_dir: Path, *, anew: bool) -> bool:
    """Whether the student of a run follows from layer times that can be measured here, and are not there."""
    if question.runtime is None or (not anew and _begun(question, teacher, out_dir)):
        return False
    key = key_of(question, teacher)
    return key is not None and read_times(times_directory(recipe, out_dir), key) is None


def _begun(question: Question, teacher: Dims, out_dir: Path) -> Resolved | None:
    """What a run in this directory was resolved to, if its question is the same."""
    file = out_dir / PLAN_FILE
    if not file.is_file():
        return None
    try:
        plan = read_plan(file)
    except VerificationError:
        return None  # the run itself says what is wrong with its directory
    if plan.promise is None or not plan.promise.answers(question) or plan.teacher.dims != teacher:
        return None
    return ResolvedTarget(student=plan.student.dims, rule=plan.rule), plan.promise


def _predictor(
    recipe: Recipe,
    question: Question,
    teacher: Dims,
    out_dir: Path,
    *,
    hardware: Hardware,
    gpu: str | None,
) -> Predictor:
    if question.goal == "memory":
        return memory_predictor(question, recipe.quantize)
    if gpu is not None:
        return _by_gpu(question, teacher, hardware)
    if (key := key_of(question, teacher)) is not None:
        times = read_times(times_directory(recipe, out_dir), key)
        if times is not None:
            return _by_times(question, teacher, times)
    device = "cpu" if recipe.bench.row.reads != CHECKPOINT else resolve_device("auto")
    if recipe.bench.row.serves and device == "cpu":
        return _by_gpu(question, teacher, hardware)
    return _by_machine(question, teacher, device)


def _by_times(question: Question, teacher: Dims, times: LayerTimes) -> Predictor:
    if question.goal == "latency":
        predict = times.step_s
    else:
        whole = times.latency_s(teacher)

        def predict(dims: Dims) -> float:
            return whole / times.latency_s(dims)

    basis = f"layer times measured in {times.key.runtime} on {times.key.machine}"
    return Predictor(source="layer times", basis=basis, predict=predict)


def _by_gpu(question: Question, teacher: Dims, hardware: Hardware) -> Predictor:
    from bench.machine.roofline import rates_of_gpu

    name = hardware.device.name
    return _by_roofline(question, teacher, rates_of_gpu(hardware.device), f"the datasheet of {name}")


def _by_machine(question: Question, teacher: Dims, device: str) -> Predictor:
    from bench.machine.machine_rates import measure_rates
    from bench.machine.roofline import compute_precision

    precision = compute_precision(question.precision)
    rates = measure_rates([precision] if precision else [], device=device)
    return _by_roofline(question, teacher, rates, f"the measured rates of {rates.device}")


def _by_roofline(question: Question, teacher: Dims, rates: Rates, basis: str) -> Predictor:
    from bench.design.grid import Cell
    from bench.machine.roofline import compute_precision, floor_s, phase_floors_s, work_of

    assert question.isl is not None
    assert question.osl is not None
    if compute_precision(question.precision) not in rates.matmul_ops_per_s:
        raise UsageError(
            f"speeds in {question.precision} cannot be predicted: no matrix rate is known",
            where=f"--target-{question.goal}",
            expected=", ".join(rates.matmul_ops_per_s),
            found=f"{question.precision} on {rates.device}",
            hint="choose one of the expected precisions, or name a size with --target",
        )
    cell, precision = Cell(question.isl, question.osl, question.batch_size), question.precision

    def predict(dims: Dims) -> float:
        work = work_of(dims, precision, cell)
        if question.goal == "latency":
            return phase_floors_s(work, rates, precision)[1]
        return whole / floor_s(work, rates, precision)

    whole = floor_s(work_of(teacher, precision, cell), rates, precision)
    return Predictor(source="roofline", basis=f"a roofline with {basis}", predict=predict)
