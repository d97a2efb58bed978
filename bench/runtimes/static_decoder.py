"""Greedy decoding with a static key/value cache, and on a GPU from one captured CUDA graph.

All buffers have their final size from the start, so a decode step does the same work at the same
addresses every time; that is what a CUDA graph needs, and it leaves Python out of the measurement.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

_MIN_SLOTS = 8  # capturing a graph runs a few steps of its own
_NUM_CAPTURE_STEPS = 3


class StaticDecoder:
    """One batch of one size, from prefill to its last token."""

    def __init__(self, model: Any, *, batch_size: int, max_length: int) -> None:
        from transformers import StaticCache

        self._model, self._device = model, model.device
        num_slots = max(max_length, _MIN_SLOTS)
        self._cache = StaticCache(config=model.config, max_cache_len=num_slots)
        self._slots = torch.arange(num_slots, device=self._device)
        self._token = torch.zeros((batch_size, 1), dtype=torch.long, device=self._device)
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)
        # Newer caches count for themselves, older ones are told.
        decoder = getattr(model, model.base_model_prefix)
        self._tells_position = "cache_position" in inspect.signature(decoder.forward).parameters
        self._graph: Any = None
        if self._device.type == "cuda":
            self._capture()

    @torch.inference_mode()
    def prefill(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Forget the last batch and read `[batch_size, isl]` prompts; returns tokens `[batch_size, 1]`."""
        self._cache.reset()
        positions = torch.arange(token_ids.shape[1], device=self._device)
        self._token.copy_(self._next(token_ids, positions))
        self._position.fill_(token_ids.shape[1])
        return self._token

    @torch.inference_mode()
    def step(self) -> torch.Tensor:
        """Read the last tokens and return the next ones `[batch_size, 1]`."""
        if self._graph is None:
            self._step_()
        else:
            self._graph.replay()
        return self._token

    def _step_(self) -> None:
        self._token.copy_(self._next(self._token, self._position))
        self._position.add_(1)

    def _next(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        mask = (self._slots[None, :] <= positions[:, None])[None, None].expand(len(token_ids), 1, -1, -1)
        told = {"cache_position": positions} if self._tells_position else {}
        output = self._model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **told,
        )
        return output.logits[:, -1].argmax(dim=-1, keepdim=True)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _capture(self) -> None:
        """Record one step; the cache is filled by a prompt of one token and forgotten at the next prefill."""
        self.prefill(self._token)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_NUM_CAPTURE_STEPS):
                self._step_()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step_()
        self._graph = graph
