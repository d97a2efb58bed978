"""Held-out losses while a training goes on: what they leave of it as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.distillation.domain_losses import held_out_loss
from compressor.distillation.module import DistillationModule
from tests.short_training import make_config
from tests.tiny_models import VOCAB_SIZE, make_model


@pytest.mark.parametrize("num_windows", [0, 6])
def test_compiled_layers_are_compiled_for_the_training_alone(num_windows: int) -> None:
    """Windows that do not fill the last batch, before the first step: its graph is still of one size."""
    model = make_model(num_hidden_layers=1).requires_grad_(requires_grad=True)
    module, compiled = DistillationModule(model, make_model(seed=1)), list[list[Any]]()

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append([tuple(one.shape) for one in inputs if isinstance(one, torch.Tensor)])
        assert all(isinstance(one, torch.Tensor) for one in inputs), "a size is an input of the graph"
        return graph.forward

    torch.compiler.reset()
    model.model.layers[0].compile(backend=backend)
    generator = torch.Generator().manual_seed(0)
    if num_windows:
        windows = torch.randint(0, VOCAB_SIZE, (num_windows, 16), generator=generator).numpy()
        plan = make_config(micro_batch_size=4)
        assert held_out_loss(module, [windows.astype(np.uint32)], plan, 0, of_teacher=False) > 0
        assert not compiled
    module(torch.randint(0, VOCAB_SIZE, (4, 16), generator=generator))["loss"].backward()
    assert len(compiled) == 1
    assert (4, 16, model.config.hidden_size) in compiled[0]
