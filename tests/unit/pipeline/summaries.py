"""Records of a finished run, by hand."""

from __future__ import annotations

from typing import Any

from compressor.core.hardware import Machine
from compressor.evaluation.record import EvaluationProtocol, EvaluationRecord, MeasuredModel
from compressor.models.dims import dims_of_config
from compressor.pipeline.summary import RunSummary
from compressor.planning.plan import Plan, make_plan
from compressor.recipe.recipe import load_recipe
from tests.tiny_models import make_model


def plan_of(model: str, text: str) -> Plan:
    """The plan of a tiny model that is trained on one text."""
    given = {"model": model, "prune.shape": {"hidden_size": 48}, "distill.data": text}
    return make_plan(load_recipe(None, given), dims_of_config(make_model().config.to_dict()))


def evaluation(**losses: float) -> EvaluationRecord:
    """An evaluation of models by their mean loss."""
    models = {
        name: MeasuredModel(
            perplexity=2 + loss, mean_nll=loss, num_tokens=7, window=64, num_windows=1, num_parameters=5
        )
        for name, loss in losses.items()
    }
    protocol = EvaluationProtocol(window=64, stride=64, split="held_out", compute_dtype="float32")
    return EvaluationRecord(protocol=protocol, text={}, models=models)


def make_summary(plan: Plan, measured: EvaluationRecord, **parts: Any) -> RunSummary:
    """A run of this plan whose evaluation is `measured`."""
    return RunSummary(
        out_dir="out",
        student="out/student",
        plan=plan,
        stages={},
        evaluation=measured,
        exports={},
        versions={"torch": "2"},
        hardware=Machine(system="Linux", cpu="a CPU", num_cpus=2, memory_bytes=8),
        warnings=(),
        **parts,
    )
