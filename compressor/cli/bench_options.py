"""Which options of a benchmark belong to which kind of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.choices.runtimes import RUNTIMES, Runtime
from compressor.cli.from_recipe import Call
from compressor.core.errors import UsageError

if TYPE_CHECKING:
    from compressor.pipeline.family import FamilyPlan
    from compressor.planning.plan import Plan

# Options of the two kinds of benchmark.
SERVING = ("bench.concurrency", "bench.num_requests", "bench.timeout_s")
STATIC = ("bench.batch_sizes", "bench.batch_limit", "bench.processes", "bench.num_series")


def refuse_without_effect(call: Call, runtime: Runtime) -> None:
    """Refuse options on the command line that this benchmark would not read.

    Raises:
        UsageError: naming them.
    """
    foreign = STATIC if runtime.serves else SERVING
    if given := [call.flags[name] for name in foreign if name in call.flags]:
        kind = "requests in flight" if runtime.serves else "static batches"
        raise UsageError(
            f"{runtime.name} measures {kind}, where these options have no effect",
            where=", ".join(given),
            hint="leave them out, or choose another --runtime",
        )


def refuse_idle_options(call: Call, made: Plan | FamilyPlan) -> None:
    """The same of a run, whose runtime its plan has chosen; without one no such option has an effect.

    Raises:
        UsageError: naming them.
    """
    from compressor.planning.plan import Plan

    plan = made if isinstance(made, Plan) else made.members[0].plan
    name = plan.runtime.name if plan.runtime else ""
    if name in RUNTIMES:
        refuse_without_effect(call, RUNTIMES[name])
        return
    given = [
        flag for field, flag in call.flags.items() if field.startswith("bench.") and field != "bench.runtime"
    ]
    if given:
        raise UsageError(
            "the benchmark is skipped, so these options have no effect",
            where=", ".join(given),
            found=f"--runtime {name}",
            hint="leave them out, or choose a runtime that measures",
        )
