"""What decides a training, and the curves that it leaves."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from compressor.core.processes import world_size


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer and schedule, in optimizer steps and sequences.

    Attributes:
        max_steps: Optimizer steps.
        batch_size: Sequences per optimizer step over all processes, however many these are.
        micro_batch_size: Sequences per forward pass and process.
        learning_rate: Peak.
        min_learning_rate_ratio: Floor of the cosine over the peak.
        warmup_steps: Linear warm-up.
        checkpoint_steps: Steps between checkpoints.
        seed: Seed of the Trainer's generators.
        bf16: Autocast to bfloat16; weights and optimizer stay float32.
        use_cpu: Stay on the CPU even if there is a GPU.
        report_to: Where curves go: tensorboard, wandb, mlflow.
    """

    max_steps: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    min_learning_rate_ratio: float
    warmup_steps: int
    checkpoint_steps: int
    seed: int
    bf16: bool
    use_cpu: bool
    report_to: tuple[str, ...] = ()

    @property
    def accumulation_steps(self) -> int:
        """Forward passes per optimizer step and process; what the batch does not fill is padded."""
        return -(-self.batch_size // (self.micro_batch_size * world_size()))

    def record(self) -> dict[str, object]:
        """All of it for the report, and how it was shared out."""
        return {**asdict(self), "accumulation_steps": self.accumulation_steps, "processes": world_size()}


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The curves of a run: one entry per ten optimizer steps, free of timings."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    learning_rate: tuple[float, ...]
    domain_loss: dict[str, tuple[float | None, ...]]
