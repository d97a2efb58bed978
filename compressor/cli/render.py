"""Results as text for a terminal: small tables, numbers with units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from compressor.choices.runtimes import NONE
from compressor.core.sizes import shown_size
from compressor.evaluation.chat_record import ChatRecord
from compressor.evaluation.record import EvaluationRecord
from compressor.evaluation.task_record import TasksRecord
from compressor.pipeline.chat_table import chat_tables
from compressor.pipeline.family import FamilyPlan, FamilyRecord
from compressor.pipeline.perplexity_table import perplexity_table
from compressor.pipeline.report import tables_of
from compressor.pipeline.summary import RunSummary
from compressor.pipeline.task_table import task_table
from compressor.planning.cost import GpuRow, PlannedPhase, TrainingEstimate
from compressor.planning.disk import DiskUse
from compressor.planning.plan import Hours, Plan
from compressor.planning.planned_bench import PlannedBench
from compressor.planning.search_plan import SearchPlan, name_of

if TYPE_CHECKING:
    from compressor.pipeline.doctor import DoctorReport
    from exporters.verification.verify import VerifyReport

_DIMS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim"),
)
_FIGURES = (
    *("num_parameters", "num_non_embedding_parameters"),
    *("flops_per_token", "kv_cache_bytes_per_token"),
)
_HEADER = (
    *("GPUs", "per GPU", "checkpointed", "fits", "s/step", "time", "GPU-hours", "cost"),
    *("from scratch", "GPU-hours", "cost"),
)


def planned_text(made: Plan | FamilyPlan, *, costs: bool = True) -> str:
    """A plan, of one model or of a family; without `costs`, no GPUs are counted that a run may not use."""
    return (
        family_plan_text(made, costs=costs) if isinstance(made, FamilyPlan) else plan_text(made, costs=costs)
    )


def finished_text(result: RunSummary | FamilyRecord) -> str:
    """The end of a run, of one model or of a family."""
    return family_text(result) if isinstance(result, FamilyRecord) else summary_text(result)


def plan_text(plan: Plan, *, costs: bool = True) -> str:
    """A plan as one table of shapes and, with `costs`, one of GPUs, hours and money."""
    teacher, student = plan.teacher, plan.student
    pairs = [(name, getattr(teacher.dims, name), getattr(student.dims, name)) for name in _DIMS]
    pairs += [(name, getattr(teacher, name), getattr(student, name)) for name in _FIGURES]
    rows = [(name, f"{of_teacher:,}", f"{of_student:,}") for name, of_teacher, of_student in pairs]
    rows += [
        (f"weights {name}", shown_size(teacher.weight_bytes[name]), shown_size(student.weight_bytes[name]))
        for name in student.weight_bytes
    ]
    memory = ", ".join(f"{stage} {shown_size(size)}" for stage, size in plan.memory_bytes.items())
    lines = [
        f"{plan.model} to {_asked(plan)}",
        table(("", "teacher", "student"), rows),
        f"exports       {', '.join(plan.exports)}",
        *_runtime_lines(plan),
        f"text          {plan.tokens:,} training tokens of {plan.text.training}",
        f"memory        {memory} (on a CPU)",
        f"disk          {shown_size(plan.disk_bytes)}",
        f"time          {_time_text(plan.hours)}",
        *_preflight_lines(plan),
    ]
    if promise := plan.promise:
        lines.append(
            f"promise       {promise.what} {promise.text(promise.predicted)} for {promise.conditions}, "
            f"predicted from {promise.basis}"
        )
    lines += search_lines(plan.search, plan.disk) if plan.search else []
    lines += [
        f"{cut.name:<13} {name_of(cut.shape)}, {cut.num_parameters:,} parameters, then {cut.tokens:,} tokens"
        for cut in plan.cuts
    ]
    if not plan.can_be_pruned:
        lines.append(f"note          {student.dims.model_type} can be planned, not pruned yet")
    if plan.training and costs:
        lines += ["", training_text(plan.training)]
    return "\n".join(lines)


def _preflight_lines(plan: Plan) -> list[str]:
    """Whether everything is tried on a slice of the model first, and why."""
    chosen = plan.preflight
    if chosen is None:
        return []
    took = f"training takes about {duration(chosen.training_hours)} on {chosen.machine}"
    if not chosen.runs:
        return [f"preflight     none: {chosen.reason}; {took}"]
    of_slice, left = chosen.num_layers
    what = f"every stage and exporter first on {of_slice} layers of the model"
    what += f", of which {left} stay" if left < of_slice else ""
    return [f"preflight     {what}: {chosen.reason}; {took}"]


def _runtime_lines(plan: Plan) -> list[str]:
    """What measures the models, why, and which machine this assumes."""
    chosen = plan.runtime
    if chosen is None:
        return []
    lines = [f"benchmark     {chosen.what} of {chosen.machine}: {chosen.reason}"]
    if chosen.is_assumed:
        lines.append(
            f"assumed       the benchmark runs on {chosen.machine}: name another with --runtime or --gpu; "
            f"hours are those of {plan.hours.hardware} (--gpu, --num-gpus)"
        )
    if plan.bench is None and chosen.name != NONE:
        lines.append(f"compared      nothing: {chosen.name} measures none of the formats")
    return [*lines, *(_bench_lines(plan.bench) if plan.bench else [])]


def _bench_lines(bench: PlannedBench) -> list[str]:
    """What is compared, what is built for it, and what that takes."""
    lines = [f"arms          {', '.join(arm.name for arm in bench.arms)}"]
    if engines := [f"{arm.engine} ({arm.name})" for arm in bench.arms if arm.engine]:
        lines.append(f"engines       {', '.join(engines)}")
    pairs = ", ".join(f"{candidate} : {baseline}" for baseline, candidate in bench.comparisons)
    took = "measured when it runs" if bench.hours is None else f"{duration(bench.hours)} on {bench.hardware}"
    took += f", assuming {bench.assumptions}" if bench.assumptions else ""
    lines.append(f"compared      {pairs}")
    cells = f"{bench.num_cells:,} cells in at least {bench.num_runs:,} runs"
    disk = f"{shown_size(bench.disk_bytes)} of disk"
    if bench.memory_bytes_per_device is None:
        what = f"{cells}, and the" if bench.num_cells else "the"
        lines.append(
            f"bench takes   {what} largest batch of each model, {took}; {disk}, all memory of the device"
        )
        return lines
    lines.append(
        f"bench takes   {cells}, {took}; {disk}, {shown_size(bench.memory_bytes_per_device)} of memory "
        "per device" + (": more than it has, so requests wait or cells fail" if bench.fits is False else "")
    )
    return lines


def _asked(plan: Plan) -> str:
    """What the student is to be, and the rule that its shape follows; a shape that was given has no other."""
    if plan.promise:
        return f"a {plan.promise.what} of {plan.promise.text(plan.promise.target)}: {plan.rule}"
    return f"{plan.target}: {plan.rule}" if plan.target else plan.rule


def search_lines(search: SearchPlan, disk: Sequence[DiskUse]) -> list[str]:
    """What a search will try, what it leaves out and why, and what it costs."""
    names = ", ".join(map(name_of, search.candidates))
    room = sum(use.temporary_bytes for use in disk if use.stage == "search")
    tried = (
        f"search        {search.num_shapes:,} shapes within {search.tolerance:.0%} of "
        f"{search.requested_parameters:,} parameters, {len(search.candidates)} to be tried on "
        f"{search.tokens:,} tokens each ({duration(search.hours)}, at most {shown_size(room)} of disk): "
        f"{names}"
    )
    left_out = [f"left out      {found.num_shapes:,}: {found.reason}" for found in search.excluded]
    lines = [tried, *left_out]
    if search.default_excluded:
        lines.append(
            f"note          the default rule's {name_of(search.default)} is not tried: "
            f"{search.default_excluded}"
        )
    return lines


def family_plan_text(family: FamilyPlan, *, costs: bool = True) -> str:
    """One plan per member of a family, and their sum."""
    total = family.total
    parts = [f"== {member.name} ==\n{plan_text(member.plan, costs=costs)}\n" for member in family.members]
    parts.append(
        f"together      {total.tokens:,} training tokens, {duration(total.hours)} on "
        f"{total.hardware} ({total.gpu_hours:,.1f} GPU-hours, ${total.cost_usd:,.0f}), "
        f"disk {shown_size(total.disk_bytes)}"
    )
    return "\n".join(parts)


def family_text(family: FamilyRecord) -> str:
    """The end of a family's run: every member's size and quality, and where everything is."""
    rows = [
        (
            entry.name,
            f"{entry.num_parameters:,}",
            f"{entry.perplexity:.3f}",
            f"{entry.teacher_perplexity:.3f}",
        )
        for entry in family.members
    ]
    lines = [table(("model", "parameters", "perplexity", "its teacher's"), rows)]
    lines += [f"warning: {entry.name}: {text}" for entry in family.members for text in entry.warnings]
    return "\n".join([*lines, f"report   {family.out_dir}/README.md"])


def _time_text(hours: Hours) -> str:
    stages = [f"{name} {duration(value)}" for name, value in hours.stages.items()]
    return (
        f"{', '.join(stages)} on {hours.hardware} at {hours.assumed_utilisation:.0%} utilisation "
        f"({hours.gpu_hours:,.1f} GPU-hours, ${hours.cost_usd:,.0f}; {hours.not_included} not included)"
    )


def summary_text(summary: RunSummary) -> str:
    """The end of a run: what was reached, and where everything is."""
    from compressor.pipeline.before_after import HEADER, before_and_after, page_of  # with numpy

    parts = []
    for title, header, rows in tables_of(summary):
        parts += [title, table(header, rows), ""]
    parts += [f"warning: {warning}" for warning in summary.warnings]
    parts += ["", "Before and after", table(HEADER, before_and_after(summary)), ""]
    page = page_of(summary)
    parts += [
        f"student  {summary.student}",
        *([f"page     {page}"] if page else []),
        f"card     {summary.out_dir}/README.md",
        f"check it compress-export verify {summary.out_dir}",
    ]
    return "\n".join(parts)


def evaluation_text(report: dict[str, Any]) -> str:
    """Perplexities, task scores or chat quality of every model."""
    if report["metric"] == "chat":
        tables = chat_tables(ChatRecord.model_validate(report))
        return "\n\n".join(f"{table(header, rows)}\n{title}" for title, header, rows in tables)
    if report["metric"] == "perplexity":
        title, header, rows = perplexity_table(EvaluationRecord.model_validate(report))
    else:
        title, header, rows = task_table(TasksRecord.model_validate(report))
    return f"{table(header, rows)}\n{title}"


def verification_text(report: VerifyReport) -> str:
    """What was checked, one line each."""
    lines = []
    for check in report.checked:
        parts = [f"{check.path}: {check.kind}: {check.status}"]
        if isinstance(sparsity := check.found.get("sparsity"), dict):
            parts.append(f"{sparsity['pattern']} sparse in {sparsity['num_tensors']} tensors")
        if contents := check.found.get("contents"):
            parts.append(str(contents))
        lines.append(", ".join(parts))
    return "\n".join([*lines, *report.notes])


def doctor_text(report: DoctorReport) -> str:
    """The machine and its libraries."""
    rows: list[tuple[str, ...]] = []
    for title, checks in (
        ("default", report.dependencies),
        ("TensorRT-LLM 1.2 container", report.tensorrt_llm_container_set),
    ):
        rows += [
            (title, check.name, check.required, check.installed or "-", _yes(check.ok)) for check in checks
        ]
    machine = report.machine
    lines = [
        table(("dependency set", "library", "required", "installed", ""), rows),
        f"machine       {machine.cpu}, {machine.num_cpus} CPUs, {shown_size(machine.memory_bytes)}",
        f"free disk     {shown_size(report.free_disk_bytes)}",
    ]
    lines += [
        f"GPU           {gpu.name}, capability {gpu.compute_capability}, "
        f"FP8 {_yes(gpu.fp8)}, 2:4 {_yes(gpu.sparsity_2_4)}"
        for gpu in report.gpus
    ]
    if not report.gpus:
        lines.append("GPU           none: FP8 and 2:4 kernels cannot run here, their exports can be written")
    lines.append(f"trtllm-build  {report.trtllm_build.version or report.trtllm_build.reason}")
    hub = report.hub
    state = "reachable" if hub.reachable else f"out of reach ({hub.reason})"
    lines.append(f"hub           {state}, token {'set' if hub.has_token else 'not set'}")
    return "\n".join(lines)


def _yes(claim: bool) -> str:  # noqa: FBT001
    return "yes" if claim else "no"


def training_text(training: TrainingEstimate) -> str:
    """Every training of a plan, its cost on 1 to 1024 GPUs, and training from scratch beside it."""
    price = f"${training.gpu_hour_price_usd:,.2f} per GPU-hour"
    price += " (an assumption: --gpu-hour-price)" if training.price_is_assumed else ""
    scratch = training.from_scratch
    rate = f"{training.assumed_utilisation:.0%} of its bf16 rate (--mfu)"
    lines = [
        f"training on {training.gpu}, assuming {rate} and {price}",
        *(_phase_text(phase) for phase in training.phases),
    ]
    if training.sampling_flops:
        lines.append(
            f"  generate: {training.sampling_flops:.2e} FLOPs, assuming "
            f"{training.assumed_sampling_utilisation:.0%} of the rate while sampling"
        )
    pairs = zip(training.by_num_gpus, scratch.by_num_gpus, strict=True)
    lines += [
        _phase_text(scratch.phase) + f": {scratch.tokens_rule}",
        table(_HEADER, [_row(ours, theirs) for ours, theirs in pairs]),
    ]
    lines += _uneven(training)
    if scratch.tokens_ratio is not None and scratch.gpu_hours_ratio is not None:
        lines.append(
            f"from scratch needs {scratch.tokens_ratio:,.1f}x the tokens and "
            f"{scratch.gpu_hours_ratio:,.1f}x the GPU-hours"
        )
    return "\n".join(lines)


def _row(ours: GpuRow, scratch: GpuRow) -> tuple[str, ...]:
    plain, checkpointed = ours.largest_memory_bytes
    fits = "checkpointed" if ours.fits_with_checkpointing else "no"
    last_phase = list(ours.step_s)[-1]
    return (
        f"{ours.num_gpus:,}",
        shown_size(plain),
        shown_size(checkpointed),
        "yes" if ours.fits else fits,
        f"{ours.step_s[last_phase]:,.2f}",
        *_cost(ours),
        *_cost(scratch),
    )


def _cost(row: GpuRow) -> tuple[str, str, str]:
    return duration(row.hours), f"{row.gpu_hours:,.1f}", f"${row.cost_usd:,.0f}"


def _phase_text(phase: PlannedPhase) -> str:
    steps, sequences = _counted(phase.steps, "step"), _counted(phase.batch_size, "sequence")
    return (
        f"  {phase.name}: {phase.tokens:,} tokens, {steps} of {sequences} of {phase.context_length:,}, "
        f"{phase.flops_per_token:.2e} FLOPs per token"
    )


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _uneven(training: TrainingEstimate) -> list[str]:
    """What to change where a batch does not fall evenly on the GPUs, once per batch size."""
    lines = []
    for size in dict.fromkeys(phase.batch_size for phase in training.phases):
        uneven = [
            f"{row.num_gpus:,} GPUs ({max(1, round(size / row.num_gpus)) * row.num_gpus:,} would)"
            for row in training.by_num_gpus
            if size % row.num_gpus
        ]
        if uneven:
            lines.append(
                f"a batch of {size:,} does not fall evenly on {', '.join(uneven)}: "
                "a step takes as long as its fullest GPU"
            )
    return lines


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned by width, numbers as they come."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def duration(hours: float) -> str:
    """Hours in the unit that suits."""
    if hours < 1 / 60:
        return f"{math.ceil(hours * 3600)} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.1f} h"
