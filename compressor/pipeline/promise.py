"""What a run was asked to reach: the question in its recipe, and whether the finished student answers it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bench.design.comparisons import arm_name
from bench.design.grid import Cell, grid_of, served_cells
from bench.report.results import CellResult, Interval, Results, Summary
from compressor.choices.formats import STUDENT_FORMAT
from compressor.core.errors import UsageError
from compressor.core.records import Record
from compressor.models.dims import Dims
from compressor.planning.outcome import Promise, Question, kv_cache_bytes, memory_question
from compressor.recipe.outcome import GOALS, Outcome
from compressor.recipe.recipe import Bench, Quantize, Recipe

Verdict = Literal["kept", "missed", "not measured"]


class Measured(Record):
    """A promise beside what was measured of the student.

    Attributes:
        value: In the promise's unit; the geometric mean of what was timed.
        low: Lower end of its 95 % interval; of bytes, which are counted, the value itself.
        high: The upper end.
        reason: Why nothing was measured, or nothing that counts: a noisy value is there, and keeps nothing.
    """

    verdict: Verdict
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def require_one_size(recipe: Recipe) -> None:
    """Refuse several answers to how large the student is, and conditions of a target that is not set.

    Raises:
        UsageError: naming them.
    """
    outcome, goals = recipe.outcome, recipe.outcome.goals
    given = {
        "--target": recipe.target is not None,
        "--shape": recipe.prune.shape is not None,
        **{f"--target-{goal}": goal in goals for goal in GOALS},
    }
    named = [flag for flag, is_given in given.items() if is_given]
    if len(named) > 1:
        raise UsageError(
            "a run takes one target or an explicit shape, not several",
            where=", ".join(named),
            found=", ".join(str(value) for value in (recipe.target, recipe.prune.shape) if value) or None,
            hint="leave all but one of them out",
        )
    if goals and recipe.prune.rotates:
        raise UsageError(
            "no outcome is predicted for a hidden size that is reduced by rotation",
            where="--hidden-removal",
            hint="give the size with --target or --shape, or use --hidden-removal channels",
        )
    if "memory" in goals and recipe.sparsify.pattern is not None and recipe.sparsify.slorb != "off":
        raise UsageError(
            "a target by memory does not count the low-rank branches beside a sparse model",
            where="--slorb",
            expected="off with --target-memory",
            found=recipe.sparsify.slorb,
            hint="give the size with --target or --shape, or leave --slorb out",
        )
    idle = []
    if "memory" not in goals:
        fields = ("batch_size", "context_length")
        default = Outcome()
        idle = [f"--target-{name.replace('_', '-')}" for name in fields if _differs(outcome, default, name)]
    if outcome.layer_times is not None and goals.keys().isdisjoint(("speedup", "latency")):
        idle.append("--layer-times")
    if idle:
        raise UsageError(
            "these options belong to a target that is not set",
            where=", ".join(idle),
            expected="--target-speedup or --target-latency"
            if idle == ["--layer-times"]
            else "--target-memory",
            hint="leave them out; a speed is promised for --isl-osl, --batch-size and --bench-precisions",
        )


def question_of(recipe: Recipe, *, on_gpu: bool = False) -> Question | None:
    """What the recipe asks the student to reach; None where it names a size.

    A speed is asked of the first cell and precision that the run's benchmark measures; `on_gpu` of the
    16-bit or FP8 student in whatever runs it on a GPU elsewhere.

    Raises:
        UsageError: for a benchmark without such a cell or precision, or for none at all.
    """
    outcome, bench = recipe.outcome, recipe.bench
    for goal, target in outcome.goals.items():
        if goal == "memory":
            return memory_question(recipe, target)
        if not bench.is_measured:
            raise UsageError(
                "a target by speed is held against the run's benchmark, which is skipped",
                where=f"--target-{goal}",
                found=f"--runtime {bench.runtime}",
                hint="leave --runtime none out, or name a size with --target",
            )
        cell = _first_cell(bench)
        if goal == "latency" and cell.osl == 1:
            raise UsageError(
                "one output token has no time per further token",
                where="--isl-osl",
                found=f"{cell.isl}/{cell.osl}",
                hint="begin --isl-osl with a pair that generates at least two tokens",
            )
        own = "fp8" if recipe.quantize.fp8 else recipe.stored_precision
        return Question(
            goal=goal,
            target=target,
            precision=own if on_gpu else _precision(recipe),
            runtime=None if on_gpu else bench.row.name,
            batch_size=cell.batch_size,
            isl=cell.isl,
            osl=cell.osl,
        )
    return None


def check_promise(
    promise: Promise, *, student: Dims, checkpoint: Path | None, quantize: Quantize, bench: Results | None
) -> Measured:
    """Hold a promise against the run's benchmark, or of memory against the bytes of the `checkpoint`."""
    if promise.goal == "memory" and checkpoint is None:
        reason = f"{shipped_format(quantize)} is none of the formats"
        return Measured(verdict="not measured", reason=reason)
    if promise.goal == "memory" and checkpoint is not None:
        size = float(weights_in(checkpoint) + kv_cache_bytes(student, promise, quantize))
        return Measured(
            verdict="kept" if promise.is_met_by(size) else "missed", value=size, low=size, high=size
        )
    cell = next(_cells(promise, bench), None) if bench else None
    if cell is None:
        reason = "the benchmark did not measure it" if bench else "the run has no benchmark"
        return Measured(verdict="not measured", reason=reason)
    interval = cell.speedup if promise.goal == "speedup" else _step_s(cell)
    if interval is None:
        return Measured(verdict="not measured", reason=f"{cell.status}: {cell.reason}")
    best = interval.high if promise.goal == "speedup" else interval.low
    verdict: Verdict = "kept" if promise.is_met_by(best) else "missed"
    is_noisy = cell.status != "ok"  # an interval that is wide enough holds any promise
    return Measured(
        verdict="not measured" if is_noisy else verdict,
        value=interval.ratio,
        low=interval.low,
        high=interval.high,
        reason=f"{cell.status}: {cell.reason}" if is_noisy else None,
    )


def promise_row(promise: Promise, measured: Measured) -> tuple[str, ...]:
    """Goal, conditions, promised, predicted, measured and verdict, for a table."""
    return (
        promise.what,
        promise.conditions,
        promise.text(promise.target),
        f"{promise.text(promise.predicted)} ({promise.source})",
        _measured_text(promise, measured),
        measured.verdict,
    )


def promise_warnings(promise: Promise, measured: Measured) -> tuple[str, ...]:
    """What a run warns of: a promise that was missed, or that nothing was measured for."""
    what = f"the promised {promise.what} of {promise.text(promise.target)} ({promise.conditions})"
    if measured.verdict == "not measured":
        return (f"{what} was not measured: {measured.reason}",)
    if measured.verdict == "missed":
        found, predicted = _measured_text(promise, measured), promise.text(promise.predicted)
        return (f"{what} was missed: measured {found}, predicted {predicted} from {promise.basis}",)
    return ()


def weights_in(checkpoint: Path) -> int:
    """Bytes of all tensors of a checkpoint: its safetensors files without their headers."""
    total = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        total += path.stat().st_size - 8 - header
    return total


def shipped_format(quantize: Quantize) -> str:
    """The checkpoint whose memory is promised."""
    return f"{STUDENT_FORMAT}-fp8" if quantize.fp8 else STUDENT_FORMAT


def _differs(outcome: Outcome, default: Outcome, name: str) -> bool:
    return bool(getattr(outcome, name) != getattr(default, name))


def _first_cell(bench: Bench) -> Cell:
    cells = served_cells(bench) if bench.row.serves else grid_of(bench)
    cell = next((cell for cell in cells if cell.candidate_batch_size is None), None)
    if cell is None:
        raise UsageError(
            "a speed is promised at one batch size of both models, and the benchmark has none",
            where="--concurrency" if bench.row.serves else "--batch-size",
            hint="add a single number there, such as 1",
        )
    return cell


def _precision(recipe: Recipe) -> str:
    bench = recipe.bench
    if bench.row.serves:
        return recipe.stored_precision
    found = next(iter(recipe.bench_precisions()), None)
    if found is None:
        raise UsageError(
            f"the benchmark measures no precision of {bench.row.name} that a speed could be promised in",
            where="--bench-precisions",
            expected=f"one of {', '.join(bench.row.precisions)}",
            found=", ".join(bench.precisions or ()) or "none",
            hint="add one of the expected precisions",
        )
    return found


def _cells(promise: Promise, bench: Results) -> Iterator[CellResult]:
    """The promise's cell of student against teacher."""
    pair = tuple(arm_name(model, promise.precision) for model in ("teacher", "student"))
    for comparison in bench.comparisons:
        if (comparison.baseline, comparison.candidate) != pair:
            continue
        for cell in comparison.cells:
            lengths = (cell.isl, cell.osl, cell.batch_size, cell.candidate_batch_size, cell.is_largest)
            if lengths == (promise.isl, promise.osl, promise.batch_size, None, False):
                yield cell


def _step_s(cell: CellResult) -> Interval | None:
    """The student's time per output token, with the interval of its series' means."""
    from bench.measure.statistics import series_interval

    timed = cell.candidate.metrics.get("tpot_s") if cell.candidate else None
    if not isinstance(timed, Summary):
        return None
    length = len(timed.samples) // cell.num_series
    series = [timed.samples[start : start + length] for start in range(0, len(timed.samples), length)]
    return series_interval(series, [[1.0] * length] * len(series))


def _measured_text(promise: Promise, measured: Measured) -> str:
    if measured.value is None or measured.low is None or measured.high is None:
        return f"not measured: {measured.reason}"
    value = promise.text(measured.value)
    if promise.goal == "memory":
        return value
    return f"{value} ({promise.text(measured.low)} to {promise.text(measured.high)})"
