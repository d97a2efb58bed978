"""Whether a run begins with a preflight, and the layers that its slice of the model has. No torch.

The slice has two layers, and one is removed where the run removes layers. Pipeline parallelism needs a layer
for every rank, and several cuts that remove layers need one for each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from compressor.choices.formats import FORMATS
from compressor.core.hardware import GPUS, peak_bf16_flops_per_s, torch_sees_gpu
from compressor.core.processes import world_size
from compressor.planning.cost import ASSUMED_UTILISATION, Hardware
from compressor.planning.plan import Plan
from compressor.planning.planned_preflight import LONG_RUN_HOURS, PlannedPreflight
from compressor.recipe.recipe import Recipe

# What one core of a server's CPU reached in the demonstration's distillation, rounded down (docs/results).
CPU_CORE_FLOPS_PER_S = 5e10
# Of several cuts, so many are tried.
TRIED_CUTS = 2


def with_preflight(plan: Plan, recipe: Recipe, hardware: Hardware | None) -> Plan:
    """The plan of a settled recipe, with its preflight; `hardware` where another machine is named."""
    flops_per_s, machine = _rate(recipe, hardware)
    hours = training_flops(plan) / flops_per_s / 3600
    slice_layers = layers_of_slice(recipe, plan)
    runs, reason = _choice(recipe, plan, slice_layers[0], hours)
    made = PlannedPreflight(
        runs=runs,
        num_layers=slice_layers if runs else (),
        training_hours=round(hours, 3),
        machine=machine,
        reason=reason,
    )
    return plan.model_copy(update={"preflight": made})


def layers_of_slice(recipe: Recipe, plan: Plan) -> tuple[int, int]:
    """Layers of the slice of the model, and of the student that is made from it."""
    most, least = plan.teacher.dims.num_hidden_layers, num_layers_left(plan)
    is_divided = any(FORMATS[name].has_engine for name in recipe.export_formats())
    ranks = recipe.export.tensorrt_llm.pp_size if is_divided else 1
    if least == most:
        kept = max(2, ranks)
        return kept, kept
    kept = max(1, ranks)
    return kept + (TRIED_CUTS if plan.cuts else 1), kept


def num_layers_left(plan: Plan) -> int:
    """Layers of the student; of a search's shapes, those of the shallowest."""
    return min(shape.num_hidden_layers for shape in plan.possible_students())


def training_flops(plan: Plan) -> float:
    """FLOPs of all trainings of a plan, and of the text that is sampled for them."""
    if plan.training is None:
        return 0.0
    trained = sum(phase.tokens * phase.flops_per_token for phase in plan.training.phases)
    return float(trained + plan.training.sampling_flops)


def _choice(recipe: Recipe, plan: Plan, num_layers: int, hours: float) -> tuple[bool, str]:
    found = plan.teacher.dims.num_hidden_layers
    if recipe.preflight == "off":
        return False, "--preflight off"
    if found <= num_layers:
        return False, f"the model has {found} layers: a slice of {num_layers} would be all of it"
    if recipe.preflight == "on":
        return True, "--preflight on"
    if hours < LONG_RUN_HOURS:
        return False, f"training is estimated to take less than {LONG_RUN_HOURS:g} h (--preflight on)"
    return True, f"training is estimated to take {LONG_RUN_HOURS:g} h or more (--preflight off)"


def _rate(recipe: Recipe, hardware: Hardware | None) -> tuple[float, str]:
    """FLOPs per second that training is assumed to reach, and where."""
    if hardware is not None:
        rate = hardware.device.bf16_flops_per_s * hardware.utilisation * hardware.num_gpus
        return rate, f"{hardware.num_gpus} x {hardware.device.name}"
    if recipe.device != "cpu" and torch_sees_gpu():
        # A GPU that is not in the table is taken for one of the slower ones that are.
        peak = peak_bf16_flops_per_s() or GPUS["a100"].bf16_flops_per_s
        return peak * ASSUMED_UTILISATION * world_size(), "this machine"
    return CPU_CORE_FLOPS_PER_S * _num_cores(), "this machine"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def planned_ahead(members: Sequence[tuple[Recipe, Plan]]) -> tuple[tuple[Recipe, Plan], ...]:
    """Those of several runs in a row that begin with a preflight."""
    return tuple((recipe, plan) for recipe, plan in members if plan.preflight and plan.preflight.runs)
