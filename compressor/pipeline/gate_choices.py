"""What gates are refused for before any work: figures that no run will have, limits beyond arithmetic."""

from __future__ import annotations

from math import ceil
from statistics import NormalDist

from compressor.choices.formats import options
from compressor.choices.tasks import expand_tasks
from compressor.core.errors import UsageError
from compressor.gates.record import CONFIDENCE
from compressor.models.dims import weight_bytes
from compressor.pipeline.bench_plan import planned_arms
from compressor.planning.plan import Plan
from compressor.recipe.gates import Gates
from compressor.recipe.recipe import Recipe

_FP8 = "huggingface-fp8"
_FORMATS = "formats"


def require_gate_choices(recipe: Recipe) -> None:
    """Refuse gates on what the run will not measure.

    Raises:
        UsageError: naming the gate, and what it needs.
    """
    gates, demanded = recipe.gates, recipe.gates.demanded()
    if gates.fail_on != Gates().fail_on and not demanded:
        _refuse("fail_on", "no gate is set, so this choice has no effect", "leave it out, or set a gate")
    for name in ("speedup", "memory"):
        if name in demanded and not recipe.bench.is_measured:
            hint = "leave out --runtime none, or the gate"
            _refuse(name, "this gate needs the benchmark, which is off", hint)
    _require_bench(recipe)
    exported = recipe.export_formats()
    for name in gates.formats:
        if name not in exported:
            _refuse(
                _FORMATS,
                f"{name!r} is none of the formats of this run: {', '.join(exported)}",
                f"add {name} to --formats, or leave its gate out",
            )
    measured = {name.partition(":")[0] for name in recipe.evaluate.tasks} | set(
        expand_tasks(recipe.evaluate.tasks)
    )
    for name in gates.tasks:
        if name not in measured:
            named = ", ".join(sorted(measured)) or "none"
            _refuse(
                "tasks",
                f"{name!r} is none of the tasks of this run: {named}",
                f"add {name} to --eval-tasks, or leave its gate out",
            )
    if "task_ratio" in demanded and not measured:
        _refuse("task_ratio", "this gate needs tasks", "name some with --eval-tasks, or leave the gate out")
    _require_chat(recipe)
    if "size" in demanded and recipe.quantize.fp8 and _FP8 not in exported:
        _refuse(
            "size",
            f"with --fp8 the size of {_FP8} is judged, which is not written",
            f"add {_FP8} to --formats, or leave the gate out",
        )


def _require_bench(recipe: Recipe) -> None:
    """Refuse gates on a benchmark without anything to measure, or with too few series for a claim."""
    demanded, bench = recipe.gates.demanded(), recipe.bench
    for name in ("speedup", "memory"):
        if name in demanded and bench.is_measured and not planned_arms(recipe):
            able = options()[bench.row.reads].values()
            _refuse(
                name,
                f"this gate needs the benchmark, and {bench.row.name} measures none of the formats",
                f"add one of {', '.join(able)} to --formats, or leave the gate out",
            )
    fewest = type(bench).model_fields["num_series"].default
    if "speedup" in demanded and bench.is_measured and not bench.row.serves and bench.num_series < fewest:
        _refuse(
            "speedup",
            f"this gate needs {fewest} series: a benchmark of {bench.num_series} is only indicative",
            "leave out --bench-series, or the gate",
        )


def _require_chat(recipe: Recipe) -> None:
    for name in ("chat_perplexity_ratio", "chat_finished"):
        if name in recipe.gates.demanded() and recipe.evaluate.chat_data is None:
            hint = "name conversations with --eval-chat-data, or leave the gate out"
            _refuse(name, "this gate needs chat quality, which is not measured", hint)


def require_feasible(recipe: Recipe, plan: Plan) -> None:
    """Refuse limits below what the student's weights alone take, or above what so few conversations can show.

    Raises:
        UsageError: naming the gate, its limit, and the bytes or the share.
    """
    _require_conversations(recipe)
    gates, students = recipe.gates, plan.possible_students()
    least: dict[str, tuple[int, str]] = {}
    if gates.size is not None:
        precision = shipped_precision(recipe)
        least["size"] = (min(int(weight_bytes(dims, precision)) for dims in students), precision)
    bench = recipe.bench
    if gates.memory is not None and bench.is_measured and not bench.row.serves:
        sizes = {
            name: min(int(weight_bytes(dims, _stored(name))) for dims in students)
            for name in recipe.bench_precisions()
            if _stored(name) in plan.student.weight_bytes
        }
        if sizes:
            widest = max(sizes, key=lambda name: sizes[name])
            least["memory"] = (sizes[widest], widest)
    for name, (num_bytes, precision) in least.items():
        limit = getattr(gates, name)
        if limit < num_bytes:
            raise UsageError(
                f"INFEASIBLE: no student of this shape can pass the gate on {name}",
                where=f"gates.{name}",
                expected=f"at least {num_bytes:,} bytes, which its weights in {precision} take",
                found=f"{limit:,} bytes",
                hint="raise the limit, or choose a smaller --target",
            )


def _require_conversations(recipe: Recipe) -> None:
    limit, number = recipe.gates.chat_finished, recipe.evaluate.chat_size
    squared = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    best = number / (number + squared)  # where Wilson's interval begins if all replies finish
    if limit is not None and limit > best:
        needed = f"set --eval-chat-size {ceil(limit * squared / (1 - limit))}, or " if limit < 1 else ""
        _refuse(
            "chat_finished",
            f"replies to {number} conversations show a share of at most {best:.3f}, even if all finish",
            f"{needed}lower the limit",
        )


def shipped_precision(recipe: Recipe) -> str:
    """The precision of the weights whose size is judged."""
    return "fp8" if recipe.quantize.fp8 else _stored(recipe.stored_precision)


def _stored(precision: str) -> str:
    """Both 16-bit types take the same room."""
    return "bf16" if precision == "fp16" else precision


def _refuse(name: str, what: str, hint: str) -> None:
    raise UsageError(what, where=f"gates.{name} (--gate-{name.replace('_', '-')})", hint=hint)
