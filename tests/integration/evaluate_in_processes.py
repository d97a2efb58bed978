"""Started by test_distributed.py through torchrun: held-out losses of a model sharded in bfloat16."""

from __future__ import annotations

import torch

from compressor.core.processes import is_main, joined, on_main
from compressor.distillation.criterion import LossConfig
from compressor.distillation.domain_losses import held_out_loss
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import place_
from compressor.recipe.recipe import Distill
from tests.integration.train_in_processes import SEQ_LEN, VOCAB, make_plan
from tests.short_training import full_state
from tests.tiny_models import make_model


def main() -> None:
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
        main()
