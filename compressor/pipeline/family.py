"""Families of models: `--target 8b,4b` makes each smaller model from the one before.

The previous model's student is both what is pruned and the teacher (Minitron, arXiv 2407.14679,
practices 1 and 8: derive the rest of a family from its largest model, start from the model closest in
size). Every member is a complete run directory of its own; `family.json` and `README.md` list them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from bench.design.comparisons import parts_of_arm
from bench.report.results import ComparisonResult
from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.core.escaping import Markdown, markdown_code, markdown_text
from compressor.core.processes import is_main, on_main
from compressor.core.records import Record
from compressor.models.dims import PRUNABLE_FIELDS, Dims, num_parameters
from compressor.models.presets import published_target
from compressor.models.source import ModelSource, resolve_source
from compressor.pipeline.bench_plan import with_bench
from compressor.pipeline.preflight_plan import planned_ahead, with_preflight
from compressor.pipeline.report import CARD_FILE, markdown_table
from compressor.pipeline.running import Start
from compressor.pipeline.summary import RunSummary
from compressor.planning.cost import Hardware
from compressor.planning.plan import Plan, make_plan
from compressor.planning.runtime_choice import RuntimeChoice
from compressor.planning.target import parse_count
from compressor.recipe import forms
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import write_json, write_text
from compressor.runs.manifest import STUDENT, claim_directory

FAMILY_FILE = "family.json"
# The last stage that makes the model from which the next member is made.
_LAST_OF_DENSE = "distill"
_FIRST = "prune"  # no member is searched for


class Member(Record):
    """One model of a family.

    Attributes:
        name: Its directory below the family's.
        plan: Its resolved shapes.
        recipe: Its own run: its model is the previous member's.
    """

    name: str
    plan: Plan
    recipe: Recipe = Field(exclude=True)


class FamilyTotal(Record):
    """The sum over all members."""

    hardware: str
    tokens: int
    gpu_hours: float
    hours: float
    cost_usd: float
    disk_bytes: int


class FamilyPlan(Record):
    """The plan of a family as one document; its members in the order they are made."""

    schema_id: Literal["compress-export/family-plan/2"] = Field(
        "compress-export/family-plan/2", alias="schema"
    )
    model: str
    targets: tuple[str, ...]
    out_dir: str
    members: tuple[Member, ...]
    total: FamilyTotal


class MeasuredSpeedup(Record):
    """Output throughput of a member over its own teacher's in one cell, with its 95 % interval."""

    pair: str
    isl: int
    osl: int
    batches: str
    status: str
    ratio: float
    low: float
    high: float


class MemberRecord(Record):
    """What the family says about a finished member; every number is its run's own."""

    name: str
    target: str
    directory: str
    student: str
    report: str
    teacher: str
    num_parameters: int
    perplexity: float
    teacher_perplexity: float
    training_tokens: int
    speedups: tuple[MeasuredSpeedup, ...]
    warnings: tuple[str, ...]


class FamilyRecord(Record):
    """`family.json`."""

    schema_id: Literal["compress-export/family/2"] = Field("compress-export/family/2", alias="schema")
    model: str
    targets: tuple[str, ...]
    out_dir: str
    complete: bool
    members: tuple[MemberRecord, ...]


def split_targets(target: str | None) -> tuple[str, ...]:
    """`8b,4b` as its parts; one target, or none, is no family.

    Raises:
        UsageError: for an empty part.
    """
    parts = tuple(part.strip() for part in (target or "").split(","))
    if len(parts) == 1:
        return parts if parts[0] else ()
    if not all(parts):
        raise UsageError(
            "a target is empty: every comma needs a size on both sides",
            where="--target",
            found=target,
            hint="separate sizes by single commas, such as 8b,4b",
        )
    return parts


def plan_family(
    recipe: Recipe,
    original: Dims,
    *,
    hardware: Hardware | None = None,
    out_dir: str = "",
    runtime: RuntimeChoice | None = None,
    machine: Hardware | None = None,
) -> FamilyPlan:
    """Resolve every member before anything is made; `original` is the first teacher's dimensions.

    All of them are measured in the same `runtime`; `machine` is that of the preflight, by default this one.

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
        teacher = previous.plan.student.dims if previous else original
        own = recipe.model_copy(update={"target": target})
        if previous and forms.SIZE.fullmatch(target) and "%" not in target:
            wanted, before = forms.parse_count(target), num_parameters(teacher)
            if wanted >= before:
                raise _not_smaller(target, f"{wanted:,} parameters after {before:,}")
        if previous:
            own = _recipe_of_later(own, target, original, teacher)
            teacher_of_it = {"model": str(_source_of_next(Path(out_dir), previous)), "tokenizer": None}
            own = own.model_copy(update=teacher_of_it)
        plan = make_plan(
            own,
            teacher,
            hardware=hardware,
            out_dir=str(Path(out_dir) / name),
            origin=original,
            runtime=runtime,
        )
        plan = with_preflight(with_bench(plan, own, hardware), own, machine)
        if plan.student.num_parameters >= num_parameters(teacher):
            raise _not_smaller(target, f"{plan.student.num_parameters:,} parameters")
        members.append(Member(name=name, recipe=own, plan=plan))
    plans = [member.plan for member in members]
    total = FamilyTotal(
        hardware=plans[0].hours.hardware,
        tokens=sum(plan.tokens for plan in plans),
        gpu_hours=round(sum(plan.hours.gpu_hours for plan in plans), 3),
        hours=round(sum(plan.hours.total for plan in plans), 4),
        cost_usd=round(sum(plan.hours.cost_usd for plan in plans), 2),
        disk_bytes=sum(plan.disk_bytes for plan in plans),
    )
    return FamilyPlan(
        model=recipe.model, targets=targets, out_dir=out_dir, members=tuple(members), total=total
    )


def run_family(
    source: ModelSource, family: FamilyPlan, out_dir: Path, console: Console, start: Start
) -> FamilyRecord:
    """Make every member that is not there yet, the first from `source`; returns what `family.json` holds.

    A restart reaches every member; later members begin again where it changes the model that they are made
    from. The preflight of all of them comes before the first.
    """
    from compressor.pipeline.pipeline import run_pipeline
    from compressor.pipeline.steps import STAGES

    decide_the_next = STAGES[: STAGES.index(_LAST_OF_DENSE) + 1]
    is_ours = on_main((out_dir / FAMILY_FILE).is_file)
    on_main(lambda: claim_directory(out_dir, is_ours=is_ours, resume=start.resume, marker=FAMILY_FILE))
    entries: list[MemberRecord] = []
    own, record = replace(start, resume=False), _record(family, entries, out_dir)
    if not is_ours:
        _write(record, out_dir)
    for number, (target, member) in enumerate(zip(family.targets, family.members, strict=True)):
        console.info(f"family: {member.name}, {number + 1} of {len(family.members)}")
        teacher = resolve_source(member.recipe.model) if number else source
        if number and start.restart_from in decide_the_next:
            own = replace(own, restart_from=_FIRST)
        summary = run_pipeline(
            *(member.recipe, teacher, member.plan, out_dir / member.name, console, own),
            ahead=() if number else planned_ahead([(one.recipe, one.plan) for one in family.members]),
        )
        entries.append(member_record(target, member.name, summary))
        record = _record(family, entries, out_dir)
        _write(record, out_dir)
    return record


def _refuse_settings_of_one_model(recipe: Recipe) -> None:
    for setting, given in (
        ("prune.shape", recipe.prune.shape),
        ("prune.scores", recipe.prune.scores),
        ("distill.teacher_logits", recipe.distill.teacher_logits),
    ):
        if given is not None:
            raise UsageError(
                f"{setting} belongs to one model, but several targets are given",
                where="--target",
                found=recipe.target,
                hint=f"name one target, or leave {setting} out",
            )


def _not_smaller(target: str, found: str) -> UsageError:
    return UsageError(
        f"target {target!r} is not smaller than the model before it",
        where="--target",
        found=found,
        hint="name the targets from large to small, each smaller than the one before, such as 8b,4b",
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
            prune = recipe.prune.model_copy(update={"shape": shape})
            return recipe.model_copy(update={"target": None, "prune": prune})
    if target.endswith("%"):
        count = parse_count(target, whole=num_parameters(original))
        return recipe.model_copy(update={"target": str(count)})
    return recipe


def _source_of_next(out_dir: Path, member: Member) -> Path:
    """The dense 16-bit model of a member: its student, or of a sparse run what was sparsified."""
    run_dir = out_dir / member.name
    if member.recipe.sparsify.pattern is None:
        return run_dir / STUDENT
    trained, repaired = member.recipe.distill.tokens, member.recipe.repair.enabled
    return run_dir / "stages" / ("distill" if trained else "reconstruct" if repaired else "prune")


def member_record(target: str, name: str, summary: RunSummary) -> MemberRecord:
    """What a family says about a member of this name, from its run."""
    models = summary.evaluation.models
    student = [name for name in models if name not in ("teacher", "quantized")][-1]
    return MemberRecord(
        name=name,
        target=target,
        directory=name,
        student=f"{name}/{STUDENT}",
        report=f"{name}/{CARD_FILE}",
        teacher=summary.plan.model,
        num_parameters=summary.plan.student.num_parameters,
        perplexity=models[student].perplexity,
        teacher_perplexity=models["teacher"].perplexity,
        training_tokens=summary.plan.tokens,
        speedups=tuple(_speedups(summary.bench.comparisons)) if summary.bench else (),
        warnings=summary.warnings,
    )


def _speedups(comparisons: Iterable[ComparisonResult]) -> Iterator[MeasuredSpeedup]:
    """Measured ratios against the member's own teacher."""
    for comparison in comparisons:
        if parts_of_arm(comparison.baseline)[0] != "teacher":
            continue
        for cell in comparison.cells:
            if cell.speedup is not None:
                yield MeasuredSpeedup(
                    pair=f"{comparison.candidate} : {comparison.baseline}",
                    isl=cell.isl,
                    osl=cell.osl,
                    batches=cell.batches,
                    status=cell.status,
                    ratio=cell.speedup.ratio,
                    low=cell.speedup.low,
                    high=cell.speedup.high,
                )


def _record(family: FamilyPlan, entries: list[MemberRecord], out_dir: Path) -> FamilyRecord:
    return FamilyRecord(
        model=family.model,
        targets=family.targets,
        out_dir=str(out_dir),
        complete=len(entries) == len(family.members),
        members=tuple(entries),
    )


def _write(record: FamilyRecord, out_dir: Path) -> None:
    if is_main():
        write_json(out_dir / FAMILY_FILE, record.to_json())
        write_text(out_dir / CARD_FILE, family_card(record))


def family_card(record: FamilyRecord) -> str:
    """The family's page: members, their quality, and speed-ups against their own teachers."""
    members, origin = record.members, markdown_code(Path(record.model).name)
    lines = [
        f"# {markdown_text(Path(record.out_dir).absolute().name)}",
        "",
        f"Models made from {origin}, each by pruning and distilling the one before.",
        "",
        *markdown_table(
            ("model", "parameters", "perplexity", "its teacher's", "training tokens"),
            [
                (
                    Markdown(f"[{entry.name}]({entry.report})"),
                    f"{entry.num_parameters:,}",
                    f"{entry.perplexity:.3f}",
                    f"{entry.teacher_perplexity:.3f}",
                    f"{entry.training_tokens:,}",
                )
                for entry in members
            ],
        ),
    ]
    speeds = [
        (
            entry.name,
            found.pair,
            f"{found.isl}/{found.osl}",
            found.batches,
            f"{found.ratio:.2f}x ({found.low:.2f} to {found.high:.2f})",
            found.status,
        )
        for entry in members
        for found in entry.speedups
    ]
    if speeds:
        header = ("model", "pair", "ISL/OSL", "batch", "speed-up (95 %)", "status")
        lines += [
            "",
            "## Speed-up of each model against its own teacher",
            "",
            *markdown_table(header, speeds),
        ]
    if not record.complete:
        missing = record.targets[len(members) :]
        lines += ["", f"Not made yet: {', '.join(missing)}. The same command continues."]
    return "\n".join(lines) + "\n"
