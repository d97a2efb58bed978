"""Whether two benchmarks may be compared: same machine, same versions, same work, same teacher.

The tool's own version and commit may differ: that is what a gate is for. So may the candidate's files.
"""

from __future__ import annotations

from bench.report.results import ArmRecord, Results

_OWN_VERSION = "compress-export"


def mismatches(before: Results, now: Results) -> tuple[str, ...]:
    """What differs although it must not, one phrase each; empty when comparable."""
    facts_before, facts_now = _facts(before), _facts(now)
    files_before, files_now = _baseline_files(before), _baseline_files(now)
    # An arm that only one of them measured has cells without a baseline, which is not a mismatch.
    for name in files_before.keys() & files_now.keys():
        facts_before[f"model {name}"], facts_now[f"model {name}"] = files_before[name], files_now[name]
    return tuple(
        f"{name} was {facts_before.get(name, 'absent')}, is {facts_now.get(name, 'absent')}"
        for name in {**facts_before, **facts_now}
        if facts_before.get(name) != facts_now.get(name)
    )


def _facts(results: Results) -> dict[str, str]:
    environment, gpus = results.environment, results.environment.before.gpus
    return {
        "CPU": environment.cpu,
        "number of usable cores": str(environment.num_usable_cores),
        "GPU": ", ".join(f"{gpu.name} at {gpu.power_limit_w} W" for gpu in gpus) or "none",
        "GPU driver": ", ".join(sorted({gpu.driver for gpu in gpus})) or "none",
        **{name: number for name, number in environment.versions.items() if name != _OWN_VERSION},
        "experiment": results.protocol.mode,
        "processes": results.protocol.processes,
        "fresh series": str(results.protocol.num_series),
        "runtime": ", ".join(sorted({arm.runtime for arm in results.arms})),
        "seed": str(results.protocol.seed),
    }


def _baseline_files(results: Results) -> dict[str, str]:
    """One digest for every arm that is not under test: the ratio's denominator.

    Those are the arms of the first model, the teacher. Where it is the only one, its precisions are
    compared, and what is a candidate may change.
    """
    teacher = results.arms[0].model
    under_test: set[str] = set()
    if all(arm.model == teacher for arm in results.arms):
        under_test = {comparison.candidate for comparison in results.comparisons}
    return {arm.id: _digest(arm) for arm in results.arms if arm.model == teacher and arm.id not in under_test}


def _digest(arm: ArmRecord) -> str:
    return "+".join(sorted(record.sha256[:12] for record in arm.files.values())) or "nothing"
