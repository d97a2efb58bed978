"""Forward hooks that are always removed, also when the forward pass raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

Observer = Callable[[torch.Tensor], None]


@contextmanager
def observed(
    *, inputs: Sequence[tuple[nn.Module, Observer]] = (), outputs: Sequence[tuple[nn.Module, Observer]] = ()
) -> Iterator[None]:
    """Show modules' first input, or (first) output, to observers while the context lasts."""

    def on_input(observe: Observer) -> Callable[..., None]:
        return lambda _module, args: observe(args[0])

    def on_output(observe: Observer) -> Callable[..., None]:
        return lambda _module, _args, output: observe(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for module, observe in inputs:
            stack.callback(module.register_forward_pre_hook(on_input(observe)).remove)
        for module, observe in outputs:
            stack.callback(module.register_forward_hook(on_output(observe)).remove)
        yield
