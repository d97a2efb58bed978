"""The recipe of a preflight: the user's own, made small enough for minutes on a slice of the model.

Every choice of a method, a format or an engine stays; sizes of texts, numbers of steps and what refers to
the whole model do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compressor.core.processes import world_size
from compressor.distillation.choice import choose_losses
from compressor.distillation.criterion import OFF
from compressor.models.dims import GROUP_FIELDS, PRUNABLE_FIELDS, Dims
from compressor.pipeline.preflight_plan import TRIED_CUTS, layers_of_slice
from compressor.planning.plan import Plan, make_plan
from compressor.recipe.bench import Bench
from compressor.recipe.compression import FEWEST_REPAIR_SEQUENCES
from compressor.recipe.gates import Gates
from compressor.recipe.masks import LearnedMasks
from compressor.recipe.outcome import Outcome
from compressor.recipe.recipe import Distill, Evaluate, Prune, Recipe, Sparsify

# Tokens per sequence, at most. A few short ones may hold no response: where only responses count, they are
# longer, and so many in the step of one process.
SEQ_LEN, RESPONSES_SEQ_LEN, RESPONSES_SEQUENCES = 128, 512, 16
SAMPLED_WINDOWS, SAMPLED_TOKENS = 8, 32
_SMALL_CHAT = {"chat_size": 2, "chat_max_tokens": 8}


@dataclass(frozen=True, kw_only=True)
class SmallRun:
    """What a preflight does.

    Attributes:
        recipe: The small recipe; its model is the slice.
        plan: Its plan.
        left_out: What of the user's recipe it does not try.
    """

    recipe: Recipe
    plan: Plan
    left_out: tuple[str, ...]


def slice_dims(recipe: Recipe, plan: Plan) -> Dims:
    """The slice of a plan's teacher."""
    return plan.teacher.dims.with_shape(num_hidden_layers=layers_of_slice(recipe, plan)[0])


def small_run(recipe: Recipe, plan: Plan, *, model: Path, dims: Dims) -> SmallRun:
    """The run that stands for another: of the slice of its model in the directory `model`, of `dims`."""
    small = Recipe.model_validate(
        {
            **dict(recipe),
            "model": str(model),
            "target": None,
            "tokenizer": None,
            "outcome": Outcome(),
            "search": recipe.search.model_copy(update={"candidates": None, "tokens": None}),
            "interleave": recipe.interleave.model_copy(update={"cuts": TRIED_CUTS if plan.cuts else 1}),
            "calibration": recipe.calibration.model_copy(
                update={
                    "size": max(FEWEST_REPAIR_SEQUENCES, world_size()),
                    "seq_len": min(SEQ_LEN, recipe.calibration.seq_len),
                }
            ),
            "prune": _prune(recipe.prune, _shape(plan.student.dims, recipe, plan)),
            "distill": _distill(recipe, plan),
            "sparsify": _sparsify(recipe),
            "masks": _masks(recipe),
            "repair": recipe.repair.model_copy(update={"steps": min(1, recipe.repair.steps)}),
            "export": recipe.export.model_copy(
                update={"formats": recipe.export_formats(), "int4_min_top1": None}
            ),
            "evaluate": _evaluate(recipe.evaluate),
            "bench": Bench(runtime="none"),
            "gates": Gates(),
        }
    )
    made = _with_search(recipe, plan, make_plan(small, dims), dims)
    return SmallRun(recipe=small, plan=made, left_out=_left_out(recipe))


def _shape(student: Dims, recipe: Recipe, plan: Plan) -> dict[str, int]:
    """A student's shape, with the layers that it has of a slice."""
    of_slice, kept = layers_of_slice(recipe, plan)
    sizes = {name: getattr(student, name) for name in (*PRUNABLE_FIELDS, *GROUP_FIELDS)}
    is_cut = student.num_hidden_layers < plan.teacher.dims.num_hidden_layers
    return {**sizes, "num_hidden_layers": kept if is_cut else of_slice}


def _prune(prune: Prune, shape: dict[str, int]) -> Prune:
    """Scored anew: saved scores are of all layers. A task is read before, and needs more than a slice."""
    own: dict[str, object] = {"shape": shape, "scores": None}
    if prune.measures_depth:
        own |= {"depth_importance": "loss", "depth_task": None, "depth_curve": None}
        own |= {"depth_size": max(1, world_size())}
    return prune.model_copy(update=own)


def _distill(recipe: Recipe, plan: Plan) -> Distill:
    """One step of every training; of several cuts, after each."""
    distill = recipe.distill
    context = _context(distill)
    tokens = (TRIED_CUTS if plan.cuts else 1) * _step(distill) if distill.tokens else 0
    own: dict[str, object] = {
        "tokens": tokens,
        "context_length": context,
        "batch_size": _batch_size(distill),
        "micro_batch_size": 1,
        "warmup_steps": None,
        "warmup_ratio": None,
        "report_to": (),
        "layer_pairs": None,
        "teacher_logits": None,
        "correction": distill.correction.model_copy(update={"tokens": None, "warmup_steps": None}),
        "dynamic_batches": distill.dynamic_batches.model_copy(update={"interval_steps": 1, "eval_size": 1}),
    }
    if distill.generate.tokens:
        sampled = {"tokens": SAMPLED_WINDOWS * context}
        sampled |= {"max_new_tokens": min(SAMPLED_TOKENS, distill.generate.max_new_tokens)}
        own["generate"] = distill.generate.model_copy(update=sampled)
    if not _compares_states(distill, plan):  # as it would on a slice, of which a large part is cut
        own["hidden_state_loss"] = OFF
    return distill.model_copy(update=own)


def _compares_states(distill: Distill, plan: Plan) -> bool:
    losses = choose_losses(
        distill,
        num_teacher_layers=plan.teacher.dims.num_hidden_layers,
        num_student_layers=plan.student.dims.num_hidden_layers,
        has_stored_logits=distill.teacher_logits is not None,
    )
    return losses.loss.intermediate != OFF


def _sparsify(recipe: Recipe) -> Sparsify:
    """One step of recovery; few tokens leave a Hessian singular, which all of them would not."""
    sparsify = recipe.sparsify
    if sparsify.pattern is None:
        return sparsify
    own: dict[str, object] = {"mask_interval": None, "decay_ramp_steps": None, "raise_dampening": True}
    own["tokens"] = _step(recipe.distill) if recipe.recovery_tokens() else 0
    return sparsify.model_copy(update=own)


def _masks(recipe: Recipe) -> LearnedMasks:
    if not recipe.mask_tokens():
        return recipe.masks
    return recipe.masks.model_copy(update={"tokens": _step(recipe.distill), "batch_size": 1})


def _context(distill: Distill) -> int:
    """Tokens per sequence."""
    return min(SEQ_LEN if distill.loss_on == "all" else RESPONSES_SEQ_LEN, distill.context_length)


def _batch_size(distill: Distill) -> int:
    """Sequences of a step, over all processes."""
    return world_size() * (1 if distill.loss_on == "all" else RESPONSES_SEQUENCES)


def _step(distill: Distill) -> int:
    """Tokens of a step."""
    return _batch_size(distill) * _context(distill)


def _evaluate(evaluate: Evaluate) -> Evaluate:
    own: dict[str, object] = {"size": 1, "seq_len": min(SEQ_LEN, evaluate.seq_len)}
    own |= {"limit": 1} if evaluate.tasks else {}
    return evaluate.model_copy(update=own | (_SMALL_CHAT if evaluate.chat_data is not None else {}))


def _with_search(recipe: Recipe, plan: Plan, made: Plan, dims: Dims) -> Plan:
    """A search among two of the shapes, as far as they differ on the slice."""
    if plan.search is None:
        return made
    shapes = [dims.with_shape(**_shape(shape, recipe, plan)) for shape in plan.search.candidates]
    tried = tuple(dict.fromkeys(shapes))[:2]
    search = plan.search.model_copy(update={"candidates": tried, "default": tried[0]})
    return made.model_copy(update={"search": search})


def _left_out(recipe: Recipe) -> tuple[str, ...]:
    """What a slice cannot try."""
    distill, prune = recipe.distill, recipe.prune
    found = {
        "the benchmark": recipe.bench.is_measured,
        "saved scores (prune.scores), which are of all layers: importance is measured": prune.scores,
        "the task that layers are chosen by (prune.depth_task): the loss is measured": prune.depth_task,
        "stored logits (distill.teacher_logits), which are of the whole teacher: it is in memory": (
            distill.teacher_logits
        ),
        "pairs of layers (distill.layer_pairs): the slice has few": distill.layer_pairs,
    }
    return tuple(text for text, is_given in found.items() if is_given)
