"""Memory that a checkpoint and the final save add to every process of a sharded training.

Four processes over gloo hold a random model of 187 million parameters with AdamW's moments. The peak of
resident memory is reset before each save (`/proc/self/clear_refs`) and read after it. The final save begins
with a forward pass for the probes, which gathers the embedding and one layer at a time, as training does.

torchrun --standalone --nproc-per-node 4 -m tests.performance.checkpoint_memory OUT
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from compressor.core.json_files import read_json_mapping
from compressor.core.processes import barrier, is_main, joined, world_size
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import place_, save_trained
from compressor.recipe.recipe import Distill
from compressor.runs.artifact import ModelArtifact, write_json
from compressor.training.checkpoints import mark_complete
from compressor.training.sharded_state import save_state
from tests.performance.measure import Bound
from tests.short_training import make_config
from tests.tiny_models import make_model, save_checkpoint

NUM_PROCESSES = 4
SHARE, ADDITIONAL_BYTES = 1.2, 256 << 20
MIB = 1 << 20
_STATES = 3  # a weight and two moments, each in float32
_SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
}


def checkpoint_bounds(scratch: Path) -> list[Bound]:
    """Both saves, in the process to which each adds the most."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_PROCESSES))
    subprocess.run(
        [sys.executable, *launcher, "-m", "tests.performance.checkpoint_memory", str(scratch)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = read_json_mapping(scratch / "memory.json", what="the measurement")
    required = (SHARE * found["shard_bytes"] + ADDITIONAL_BYTES) / MIB
    names = {"checkpoint": "training checkpoint", "final_save": "final save"}
    return [
        Bound(
            what=f"{names[save]} by {NUM_PROCESSES} processes: memory added to one",
            measured=max(found[save]) / MIB,
            required=required,
            unit="MiB",
        )
        for save in names
    ]


def measure(out: Path) -> None:
    """Write `memory.json`: bytes of one process's shard, and what each save adds to every process."""
    student = make_model(**_SHAPE)
    if is_main():
        save_checkpoint(out / "source", student)
    barrier()
    student.requires_grad_(requires_grad=True).train()
    module = DistillationModule(student, None, LossConfig(kl_weight=0))
    plan = make_config()
    place_(module, Distill(sharding="fsdp"), plan, "cpu")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    named = dict(module.named_parameters())
    num_parameters = sum(parameter.numel() for parameter in named.values())
    source = ModelArtifact(
        path=out / "source", stage="source", fingerprint="f", lineage=(), num_parameters=num_parameters
    )

    def save_checkpoint_of_training() -> None:
        save_state(out / "checkpoint", named, optimizer)
        barrier()
        if is_main():
            mark_complete(out / "checkpoint")

    (out / "final").mkdir(exist_ok=True)
    added = {
        "checkpoint": _added(save_checkpoint_of_training),
        "final_save": _added(
            lambda: save_trained(module, source, out / "final", dtype=torch.bfloat16, plan=plan)
        ),
    }
    if is_main():
        shard_bytes = _STATES * 4 * num_parameters // world_size()
        write_json(out / "memory.json", {"parameters": num_parameters, "shard_bytes": shard_bytes, **added})


def _added(save: Callable[[], None]) -> list[int]:
    """Bytes that a save adds to the resident memory of each process, at most."""
    gc.collect()
    barrier()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _resident("VmRSS")
    save()
    added = torch.tensor([_resident("VmHWM") - before])
    every = [torch.zeros_like(added) for _ in range(world_size())]
    dist.all_gather(every, added)
    return [int(value) for value in every]


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise KeyError(field)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu"):
        measure(Path(sys.argv[1]))
