"""Teacher correction: fine-tuning the teacher on the distillation text, before or during distillation.

Minitron 2 (arXiv 2408.11796, section 3): a peak learning rate a fifth of distillation's, 120 warm-up
steps, batch, minimum learning rate and schedule as there. It may run beside distillation; pruning may
start from the uncorrected teacher.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.core.processes import world_size
from compressor.data.sources import source_fingerprint
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import SCRATCH, Training, load_trainable, schedule, training_content
from compressor.planning.schedule import correction_schedule
from compressor.recipe.recipe import Distill
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult
from compressor.training.config import TrainingConfig
from compressor.training.extension import TrainingExtension
from compressor.training.sharding import is_sharded, whole

LEARNING_RATE_SHARE = 1 / 5
MAX_GRAD_NORM = 1.0


def correction_learning_rate(config: Distill) -> float:
    """The teacher's peak learning rate."""
    return config.correction.learning_rate or config.learning_rate * LEARNING_RATE_SHARE


def correction_budget(config: Distill) -> Distill:
    """Distillation's settings with the correction's budget and peak; the batch stays distillation's."""
    return config.model_copy(
        update={
            "tokens": config.correction.tokens or config.tokens,
            "learning_rate": correction_learning_rate(config),
        }
    )


def correction_settings(config: Distill, *, seed: int, device: str, dtype: str) -> TrainingConfig:
    """The trainer's settings for a correction that comes first.

    Raises:
        UsageError: when the budget does not fill one window.
    """
    budget = correction_budget(config)
    steps = correction_schedule(config, world_size())
    plan = schedule(budget, seed=seed, device=device, dtype=dtype, steps=steps)
    floor = config.min_learning_rate_ratio * config.learning_rate / budget.learning_rate
    return replace(plan, min_learning_rate_ratio=min(1.0, floor))


def run(config: Distill, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Fine-tune the teacher `source` by cross-entropy and write it in 16 bits.

    Raises:
        UsageError: when the text or the budget does not fill one window.
    """
    plan = correction_settings(config, seed=context.seed, device=context.device, dtype=context.dtype)
    training = Training(correction_budget(config), config.mixture(), source, out_dir, context, plan=plan)
    module = DistillationModule(load_trainable(source, context), None, LossConfig(kl_weight=0))
    details = training.save(module, training.fit_(module))
    return StageResult(
        num_parameters=source.num_parameters,
        details={"loss": "cross-entropy of the teacher, mean over tokens", **details},
        scratch=SCRATCH,
    )


class CorrectAlongside(TrainingExtension):
    """Trains the teacher of a `DistillationModule` in the same steps as the student.

    The schedule is distillation's, warm-up included, around a peak of its own. The Trainer clips and
    clears the gradients of its own module only, so the teacher's are clipped and cleared here.
    """

    def __init__(self, teacher: nn.Module, *, learning_rate: float) -> None:
        """Make the module's teacher, its parameters in float32, trainable with a peak of its own."""
        self._teacher = teacher.requires_grad_(requires_grad=True).train()
        self._learning_rate = learning_rate

    def make_optimizer(self, module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer | None:
        """AdamW with the trainer's settings: one group for the module, one for the teacher.

        Raises:
            UnsupportedError: for several processes that each hold a whole teacher.
        """
        if world_size() > 1 and not is_sharded(self._teacher):
            raise UnsupportedError(
                "a teacher corrected alongside must be sharded over the processes",
                where="distill.correction.mode alongside",
                expected="distill.sharding fsdp",
                hint="use --sharding fsdp, one process, or --teacher-correction first",
            )
        own = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [
            {"params": own, "lr": config.learning_rate},
            {"params": list(self._teacher.parameters()), "lr": self._learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
        optimizer.register_step_pre_hook(self._clip)
        return optimizer

    def after_step(self, step: int) -> None:
        """Clear the teacher's gradients."""
        self._teacher.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The teacher's parameters."""
        return {f"teacher.{name}": parameter for name, parameter in self._teacher.named_parameters()}

    def _clip(self, *_arguments: Any) -> None:
        norm = nn.utils.clip_grad_norm_(self._teacher.parameters(), MAX_GRAD_NORM)
        if not torch.isfinite(whole(norm)):
            raise VerificationError(
                "the gradient of the teacher corrected alongside is not finite",
                found=f"norm {float(whole(norm))}",
                hint="lower --correction-learning-rate, and start in another directory",
            )


def require_alongside(config: Distill) -> None:
    """Refuse settings that a correction alongside cannot follow.

    Raises:
        UsageError: for a budget or a warm-up of its own, or stored teacher logits.
    """
    correction = config.correction
    if correction.tokens is not None or correction.warmup_steps is not None:
        raise UsageError(
            "a teacher corrected alongside follows distillation's budget and warm-up",
            where="distill.correction",
            expected="neither tokens nor warmup_steps",
            hint="leave both out, or set distill.correction.mode to first",
        )
    if config.teacher_logits is not None:
        raise UsageError(
            "stored logits belong to a teacher that is not trained meanwhile",
            where="distill.correction.mode",
            expected="off",
            found=correction.mode,
            hint="correct the teacher first and store its logits then, or give --teacher",
        )


CORRECT: Stage[Distill] = Stage(
    name="correct",
    run=run,
    format_version=2,
    libraries=("torch", "transformers", "accelerate"),
    content=lambda config: training_content(config, "correction"),
    data=lambda config: tuple(domain.data for domain in config.mixture()),
    fingerprint=source_fingerprint,
    parallel=True,
)
