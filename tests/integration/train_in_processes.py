"""Started by test_distributed.py, alone or through torchrun: a short distillation of a tiny model.

python -m tests.integration.train_in_processes OUT TIED SHARDING MICRO_BATCH KILL_AT

Without arguments, held-out losses of a model sharded in bfloat16.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from compressor.core.console import Console
from compressor.core.processes import barrier, is_main, joined, on_main, rank, world_size
from compressor.data.mixing import DomainWindows, WindowStream
from compressor.data.packing import TokenWindows, Window, starts_path
from compressor.distillation.criterion import LossConfig
from compressor.distillation.domain_losses import held_out_loss
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import place_
from compressor.recipe.recipe import Distill
from compressor.training.config import TrainingConfig
from compressor.training.extension import TrainingExtension
from compressor.training.probes import take_probes, write_probes
from compressor.training.trainer import train
from tests.short_training import full_state, make_config
from tests.tiny_models import make_model

SEQ_LEN, BATCH_SIZE, VOCAB = 16, 8, 320


class KillAfter(TrainingExtension):
    """SIGKILL of the last process right after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def after_step(self, step: int) -> None:
        if step == self._step and rank() == world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def write_text(directory: Path) -> None:
    """Two domains of random tokens whose documents end at random: counted tokens differ by window."""
    generator = np.random.default_rng(0)
    for domain in range(2):
        path = directory / f"{domain}.bin"
        generator.integers(0, VOCAB, 20 * SEQ_LEN + 1).astype("<u4").tofile(path)
        starts = np.sort(generator.choice(20 * SEQ_LEN, 60, replace=False))
        starts.astype("<u8").tofile(starts_path(path))


def open_domains(directory: Path) -> WindowStream:
    domains = [
        DomainWindows(
            name=str(domain),
            windows=TokenWindows(directory / f"{domain}.bin", seq_len=SEQ_LEN, isolate_documents=True),
        )
        for domain in range(2)
    ]
    return RecordedStream(directory / "order.txt", domains)


class RecordedStream(WindowStream):
    """Writes down which windows every step sees."""

    def __init__(self, file: Path, domains: list[DomainWindows]) -> None:
        super().__init__(domains, [1, 2], seed=0)
        self._file = file

    def step_windows(self, num_windows: int) -> list[Window]:
        step, windows = self.step, super().step_windows(num_windows)
        if is_main():
            with self._file.open("a", encoding="utf-8") as file:
                print(step, *(zlib.crc32(window["input_ids"].tobytes()) for window in windows), file=file)
        return windows


def make_plan(*, micro_batch_size: int, bf16: bool = False) -> TrainingConfig:
    sizes = {"batch_size": BATCH_SIZE, "micro_batch_size": micro_batch_size}
    return make_config(max_steps=20, warmup_steps=2, checkpoint_steps=4, bf16=bf16, **sizes)


def main(out: str, tied: str, sharding: str, micro: str, kill_at: str) -> None:
    out_dir = Path(out)
    if is_main():
        out_dir.mkdir(exist_ok=True)
        write_text(out_dir)
    barrier()
    student = make_model(tie_word_embeddings=tied == "tied", seed=1, hidden_size=32)
    student.requires_grad_(requires_grad=True).train()
    recipe = Distill.model_validate({"sharding": sharding, "kl_weight": 0.5})
    module = DistillationModule(student, make_model(seed=2), LossConfig(kl_weight=0.5))
    plan = make_plan(micro_batch_size=int(micro))
    place_(module, recipe, plan, "cpu")
    kinds = [isinstance(parameter, DTensor) for parameter in module.parameters()]
    assert all(kinds) if world_size() > 1 and sharding == "fsdp" else not any(kinds)
    killer = [KillAfter(int(kill_at))]
    log = train(module, open_domains(out_dir), plan, out_dir, Console(), extensions=killer)
    probes = take_probes(module, compute_dtype="float32")
    state = full_state(student)
    if is_main():
        write_probes(out_dir, probes)
        save_file(state, out_dir / "student.safetensors")
        (out_dir / "log.json").write_text(json.dumps(asdict(log)), encoding="utf-8")


def evaluate() -> None:
    student = make_model(tie_word_embeddings=True, seed=1, hidden_size=32)
    module = DistillationModule(student, make_model(seed=2), LossConfig())
    plan = make_plan(micro_batch_size=2, bf16=True)
    place_(module, Distill.model_validate({"sharding": "fsdp"}), plan, "cpu")
    before = full_state(student)
    windows = torch.randint(VOCAB, (4, SEQ_LEN), generator=torch.Generator().manual_seed(0)).numpy()
    for of_teacher in (False, True):
        assert held_out_loss(module, [windows], plan, 0, of_teacher=of_teacher) > 0
    after = full_state(student)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert on_main(lambda: (is_main(), on_main(lambda: "inside"))) == (True, "inside")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu"):
        main(*sys.argv[1:]) if sys.argv[1:] else evaluate()
