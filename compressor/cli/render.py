"""Results as text for a terminal: small tables, numbers with units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.cli.render_training import training_text
from compressor.cli.tables import duration, gib, table
from compressor.pipeline.family import FamilyPlan, FamilyPlanRecord, FamilyRecord
from compressor.pipeline.report import tables_of
from compressor.pipeline.summary import RunSummary
from compressor.planning.plan import Hours, Plan

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


def planned_text(made: Plan | FamilyPlan) -> str:
    """A plan, of one model or of a family."""
    return family_plan_text(made.record) if isinstance(made, FamilyPlan) else plan_text(made)


def finished_text(result: RunSummary | FamilyRecord) -> str:
    """The end of a run, of one model or of a family."""
    return family_text(result) if isinstance(result, FamilyRecord) else summary_text(result)


def plan_text(plan: Plan) -> str:
    """A plan as one table of shapes and one of costs."""
    teacher, student = plan.teacher, plan.student
    pairs = [(name, getattr(teacher.dims, name), getattr(student.dims, name)) for name in _DIMS]
    pairs += [(name, getattr(teacher, name), getattr(student, name)) for name in _FIGURES]
    rows = [(name, f"{of_teacher:,}", f"{of_student:,}") for name, of_teacher, of_student in pairs]
    rows += [
        (f"weights {name}", gib(teacher.weight_bytes[name]), gib(student.weight_bytes[name]))
        for name in student.weight_bytes
    ]
    memory = ", ".join(f"{stage} {gib(size)}" for stage, size in plan.memory_bytes.items())
    lines = [
        f"{plan.model} to {plan.target or 'an explicit shape'}: {plan.rule}",
        table(("", "teacher", "student"), rows),
        f"exports       {', '.join(plan.exports)}",
        f"text          {plan.tokens:,} training tokens of {plan.text.training}",
        f"memory        {memory}",
        f"disk          {gib(plan.disk_bytes)}",
        f"time          {_time_text(plan.hours)}",
    ]
    if not plan.can_be_pruned:
        lines.append(f"note          {student.dims.model_type} can be planned, not pruned yet")
    if plan.training:
        lines += ["", training_text(plan.training)]
    return "\n".join(lines)


def family_plan_text(family: FamilyPlanRecord) -> str:
    """One plan per member of a family, and their sum."""
    total = family.total
    parts = [f"== {member.name} ==\n{plan_text(member.plan)}\n" for member in family.members]
    parts.append(
        f"together      {total.tokens:,} training tokens, {duration(total.hours)} on "
        f"{total.hardware} ({total.gpu_hours:,.1f} GPU-hours, ${total.cost_usd:,.0f}), "
        f"disk {gib(total.disk_bytes)}"
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
    parts = []
    for title, header, rows in tables_of(summary):
        parts += [title, table(header, rows), ""]
    parts += [f"warning: {warning}" for warning in summary.warnings]
    parts += [f"student  {summary.student}", f"report   {summary.out_dir}/README.md"]
    return "\n".join(parts)


def stage_text(artifact: Any) -> str:
    """What a stage command wrote."""
    return f"{artifact.path}: {artifact.num_parameters:,} parameters, {' > '.join(artifact.lineage)}"


def evaluation_text(report: dict[str, Any]) -> str:
    """Perplexities or task scores of every model."""
    models = report["models"]
    if report["metric"] == "perplexity":
        rows = [
            (name, f"{entry['num_parameters']:,}", f"{entry['perplexity']:.3f}")
            for name, entry in models.items()
        ]
        protocol = report["protocol"]
        part = "the text's held-out part" if protocol["split"] == "held_out" else "the text from its start"
        caption = f"{part}, window {protocol['window']}, non-overlapping, no BOS, {protocol['compute_dtype']}"
        return f"{table(('model', 'parameters', 'perplexity'), rows)}\n{caption}"
    scores = [
        (name, task, metric, f"{value:.4f}")
        for name, entry in models.items()
        for task, results in entry["tasks"].items()
        for metric, value in results.items()
    ]
    return table(("model", "task", "metric", "value"), scores)


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
        f"machine       {machine.cpu}, {machine.num_cpus} CPUs, {gib(machine.memory_bytes)}",
        f"free disk     {gib(report.free_disk_bytes)}",
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
