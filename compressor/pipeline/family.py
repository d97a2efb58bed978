"""Families of models: `--target 8b,4b` makes each smaller model from the one before.

The previous model's student is both what is pruned and the teacher (Minitron, arXiv 2407.14679,
practices 1 and 8: derive the rest of a family from its largest model, start from the model closest in
size). Every member is a complete run directory of its own; `family.json` and `README.md` list them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.design.comparisons import parts_of_arm
from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.core.escaping import Markdown, markdown_code, markdown_text
from compressor.core.processes import is_main, on_main
from compressor.models.dims import PRUNABLE_FIELDS, Dims, num_parameters
from compressor.models.presets import published_target
from compressor.models.source import ModelSource, resolve_source
from compressor.pipeline.report import CARD_FILE, batches_of, markdown_table
from compressor.planning.cost import Hardware
from compressor.planning.plan import Plan, make_plan
from compressor.planning.target import parse_count
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import write_json, write_text
from compressor.runs.manifest import STUDENT, claim_directory

FAMILY_FILE = "family.json"
SCHEMA = "compress-export/family/1"
PLAN_SCHEMA = "compress-export/family-plan/1"
# Discarding one of these changes the model that the next member is made from: it begins again.
_CELL_FIELDS = ("isl", "osl", "batch_size", "candidate_batch_size", "status")
_DECIDE_THE_NEXT = ("prune", "distill")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of a family.

    Attributes:
        name: Its directory below the family's.
        recipe: Its own run: its model is the previous member's.
        plan: Its resolved shapes.
    """

    name: str
    recipe: Recipe
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class FamilyPlan:
    """All members in the order they are made, and the plan as one JSON document."""

    members: tuple[Member, ...]
    document: dict[str, Any]


def split_targets(target: str | None) -> tuple[str, ...]:
    """`8b,4b` as its parts; one target, or none, is no family.

    Raises:
        UsageError: for an empty part.
    """
    parts = tuple(part.strip() for part in (target or "").split(","))
    if len(parts) == 1:
        return parts if parts[0] else ()
    if not all(parts):
        raise UsageError("a target is empty", where="--target", expected="8b,4b", found=target)
    return parts


def plan_family(
    recipe: Recipe, original: Dims, *, hardware: Hardware | None = None, out_dir: str = ""
) -> FamilyPlan:
    """Resolve every member before anything is made.

    Args:
        recipe: The run, whose target names several.
        original: The dimensions of the first teacher.
        hardware: The stated hardware of hours and costs.
        out_dir: The family's directory.

    Raises:
        UsageError: targets that do not shrink strictly, or settings that only suit one model.
    """
    targets = split_targets(recipe.target)
    _refuse_settings_of_one_model(recipe)
    members: list[Member] = []
    for target in targets:
        name = target.lower().replace("%", "pct")
        if name in {member.name for member in members}:
            raise _not_smaller(target, "the same target again")
        previous = members[-1] if members else None
        teacher = previous.plan.target.student if previous else original
        own = recipe.model_copy(update={"target": target})
        if previous:
            own = _recipe_of_later(own, target, original, teacher)
            teacher_of_it = {"model": str(_source_of_next(Path(out_dir), previous)), "tokenizer": None}
            own = own.model_copy(update=teacher_of_it)
        plan = make_plan(own, teacher, hardware=hardware, out_dir=str(Path(out_dir) / name), origin=original)
        if num_parameters(plan.target.student) >= num_parameters(teacher):
            raise _not_smaller(target, f"{num_parameters(plan.target.student):,} parameters")
        members.append(Member(name=name, recipe=own, plan=plan))
    return FamilyPlan(members=tuple(members), document=_document(recipe, targets, members, out_dir))


def run_family(
    source: ModelSource,
    family: FamilyPlan,
    out_dir: Path,
    console: Console,
    *,
    resume: bool = False,
    overwrite: bool = False,
    restart_from: str | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Make every member that is not there yet; returns what `family.json` then holds.

    Args:
        source: The first teacher.
        family: The resolved members.
        out_dir: The family's directory.
        console: Messages.
        resume: Assert that there is something to resume.
        overwrite: Start every member anew.
        restart_from: Discard this stage and all later ones first, in every member.
        check: Compare every file of a finished member with its recorded sha256.
    """
    from compressor.pipeline.pipeline import run_pipeline

    is_ours = on_main((out_dir / FAMILY_FILE).is_file)
    on_main(lambda: claim_directory(out_dir, is_ours=is_ours, resume=resume, marker=FAMILY_FILE))
    entries: list[dict[str, Any]] = []
    if not is_ours:
        _write(family, entries, out_dir)
    for number, member in enumerate(family.members):
        console.info(f"family: {member.name}, {number + 1} of {len(family.members)}")
        summary = run_pipeline(
            member.recipe,
            source if number == 0 else resolve_source(member.recipe.model),
            member.plan,
            out_dir / member.name,
            console,
            overwrite=overwrite,
            check=check,
            restart_from="prune" if number and restart_from in _DECIDE_THE_NEXT else restart_from,
        )
        entries.append(_entry(member, summary))
        _write(family, entries, out_dir)
    return _record(family, entries, out_dir)


def _refuse_settings_of_one_model(recipe: Recipe) -> None:
    for setting, given in (
        ("prune.shape", recipe.prune.shape),
        ("distill.teacher_logits", recipe.distill.teacher_logits),
    ):
        if given is not None:
            raise UsageError(
                f"{setting} belongs to one model, but several targets are given",
                where="--target",
                expected="one target, or no such setting",
                found=recipe.target,
            )


def _not_smaller(target: str, found: str) -> UsageError:
    return UsageError(
        f"target {target!r} is not smaller than the model before it",
        where="--target",
        expected="strictly shrinking targets, such as 8b,4b",
        found=found,
    )


def _recipe_of_later(recipe: Recipe, target: str, original: Dims, teacher: Dims) -> Recipe:
    """The target of a member after the first, complete without the family.

    What a target means is decided by the original model: percentages are of its size, and its
    published shapes come first where they can be cut out of this member's teacher.
    """
    published = published_target(original, target)
    if published is not None:
        shape = {name: getattr(published.dims, name) for name in PRUNABLE_FIELDS}
        fits = all(size <= getattr(teacher, name) for name, size in shape.items())
        if fits and teacher.with_shape(**shape) == published.dims:
            return recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"shape": shape})})
    if target.endswith("%"):
        count = parse_count(target, option="--target", whole=num_parameters(original))
        return recipe.model_copy(update={"target": str(count)})
    return recipe


def _source_of_next(out_dir: Path, member: Member) -> Path:
    """The dense 16-bit model of a member: its student, or of a sparse run what was sparsified."""
    run_dir = out_dir / member.name
    if member.recipe.sparsify.pattern is None:
        return run_dir / STUDENT
    return run_dir / "stages" / ("distill" if member.recipe.distill.tokens else "prune")


def _document(
    recipe: Recipe, targets: tuple[str, ...], members: list[Member], out_dir: str
) -> dict[str, Any]:
    plans = [member.plan.document for member in members]
    return {
        "schema": PLAN_SCHEMA,
        "model": recipe.model,
        "targets": list(targets),
        "out_dir": out_dir,
        "members": [{"name": member.name, "plan": member.plan.document} for member in members],
        "total": {
            "hardware": plans[0]["hours"]["hardware"],
            "tokens": sum(plan["tokens"] for plan in plans),
            "gpu_hours": round(sum(plan["hours"]["gpu_hours"] for plan in plans), 3),
            "hours": round(sum(_hours(plan["hours"]) for plan in plans), 4),
            "cost_usd": round(sum(plan["hours"]["cost_usd"] for plan in plans), 2),
            "disk_bytes": sum(plan["disk_bytes"]["total"] for plan in plans),
        },
    }


def _hours(hours: dict[str, Any]) -> float:
    """All stages of a plan's `hours`."""
    not_stages = ("assumed_utilisation", "gpu_hours", "cost_usd")
    return sum(value for name, value in hours.items() if isinstance(value, float) and name not in not_stages)


def _entry(member: Member, summary: dict[str, Any]) -> dict[str, Any]:
    """What the family says about a finished member; every number is its run's own."""
    models = summary["evaluation"]["models"]
    student = [name for name in models if name not in ("teacher", "quantized")][-1]
    return {
        "name": member.name,
        "target": member.recipe.target,
        "directory": member.name,
        "student": f"{member.name}/{STUDENT}",
        "report": f"{member.name}/{CARD_FILE}",
        "teacher": summary["plan"]["model"],
        "num_parameters": summary["plan"]["student"]["num_parameters"],
        "perplexity": models[student]["perplexity"],
        "teacher_perplexity": models["teacher"]["perplexity"],
        "training_tokens": summary["plan"]["tokens"],
        "speedups": list(_speedups(summary["bench"])) if summary["bench"] else [],
        "warnings": summary["warnings"],
    }


def _speedups(bench: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Measured ratios against the member's own teacher."""
    for comparison in bench["comparisons"]:
        if parts_of_arm(comparison["baseline"])[0] != "teacher":
            continue
        for cell in comparison["cells"]:
            if cell["speedup"] is not None:
                yield {
                    "pair": f"{comparison['candidate']} : {comparison['baseline']}",
                    **{name: cell[name] for name in _CELL_FIELDS if name in cell},
                    **{name: cell["speedup"][name] for name in ("ratio", "low", "high")},
                }


def _record(family: FamilyPlan, entries: list[dict[str, Any]], out_dir: Path) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": family.document["model"],
        "targets": family.document["targets"],
        "out_dir": str(out_dir),
        "complete": len(entries) == len(family.members),
        "members": entries,
    }


def _write(family: FamilyPlan, entries: list[dict[str, Any]], out_dir: Path) -> None:
    if not is_main():
        return
    record = _record(family, entries, out_dir)
    write_json(out_dir / FAMILY_FILE, record)
    write_text(out_dir / CARD_FILE, _card(record))


def _card(record: dict[str, Any]) -> str:
    """The family's page: members, their quality, and speed-ups against their own teachers."""
    members, origin = record["members"], markdown_code(Path(record["model"]).name)
    lines = [
        f"# {markdown_text(Path(record['out_dir']).absolute().name)}",
        "",
        f"Models made from {origin}, each by pruning and distilling the one before.",
        "",
        *markdown_table(
            ("model", "parameters", "perplexity", "its teacher's", "training tokens"),
            [
                (
                    Markdown(f"[{entry['name']}]({entry['report']})"),
                    f"{entry['num_parameters']:,}",
                    f"{entry['perplexity']:.3f}",
                    f"{entry['teacher_perplexity']:.3f}",
                    f"{entry['training_tokens']:,}",
                )
                for entry in members
            ],
        ),
    ]
    speeds = [
        (
            entry["name"],
            found["pair"],
            f"{found['isl']}/{found['osl']}",
            batches_of(found),
            f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f})",
            found["status"],
        )
        for entry in members
        for found in entry["speedups"]
    ]
    if speeds:
        header = ("model", "pair", "ISL/OSL", "batch", "speed-up (95 %)", "status")
        lines += [
            "",
            "## Speed-up of each model against its own teacher",
            "",
            *markdown_table(header, speeds),
        ]
    if not record["complete"]:
        missing = record["targets"][len(members) :]
        lines += ["", f"Not made yet: {', '.join(missing)}. The same command continues."]
    return "\n".join(lines) + "\n"
