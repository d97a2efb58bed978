"""The writer of TensorRT-LLM checkpoints: `config.json` and one `rank{r}.safetensors` per rank, streamed.

FP8 weights are the student's 16-bit weights, rounded once: q, k and v share one scale, and so do the
MLP's input projections, each the largest of its parts' (TensorRT-LLM fuses these layers). Nothing that
is FP8 already is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.core.errors import VerificationError
from compressor.models.axes import AXES
from compressor.models.checkpoint import (
    CONFIG_FILE,
    CheckpointReader,
    TensorSpec,
    read_config,
    row_blocks,
    whole,
    write_safetensors,
)
from compressor.models.dims import Dims, dims_of_config
from compressor.quantization.amax import recorded
from compressor.quantization.e4m3 import E4M3, scale_of, to_e4m3
from exporters.tensorrt_llm.config import Parallelism, checkpoint_config, format_of, padded_vocab

Amax = dict[str, torch.Tensor]
_Convert = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Rectangle:
    """A rectangle of one of the student's tensors; `num_rows` beyond the tensor's own are zeros."""

    name: str
    start: int
    num_rows: int
    columns: slice | None = None


def write_trtllm_checkpoint(
    source: Path,
    out_dir: Path,
    *,
    dtype: torch.dtype,
    parallelism: Parallelism,
    amax: Amax | None = None,
    fp8_kv_cache: bool = False,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write the checkpoint of a 16- or 32-bit Hugging Face checkpoint into an existing directory.

    `dtype` is of everything that is not FP8. With recorded maxima, `amax`, the decoder's linear layers
    become FP8, and with `fp8_kv_cache` keys and values as well. `on_tensor` is called after every written
    tensor.

    Raises:
        UnsupportedError: for what the format cannot express.
        VerificationError: when a value overflows the cast, or a maximum is not on record.
    """
    config = read_config(source)
    written = checkpoint_config(
        config,
        dtype=str(dtype).removeprefix("torch."),
        parallelism=parallelism,
        fp8=amax is not None,
        fp8_kv_cache=fp8_kv_cache,
    )
    text = json.dumps(written, indent=2) + "\n"
    (out_dir / CONFIG_FILE).write_text(text, encoding="utf-8")
    with CheckpointReader(source) as reader:
        for rank in range(parallelism.world_size):
            writer = _RankWriter(reader, dims_of_config(config), parallelism, rank, dtype, amax)
            specs = list(writer.specs(fp8_kv_cache=fp8_kv_cache))
            write_safetensors(out_dir / f"rank{rank}.safetensors", specs, on_tensor=on_tensor)


class _RankWriter:
    """The tensors of one rank."""

    def __init__(
        self,
        reader: CheckpointReader,
        dims: Dims,
        parallelism: Parallelism,
        rank: int,
        dtype: torch.dtype,
        amax: Amax | None,
    ) -> None:
        self._reader, self._dims, self._parallelism = reader, dims, parallelism
        self._pp_rank, self._tp_rank = divmod(rank, parallelism.tp_size)
        self._dtype, self._amax = dtype, amax

    def specs(self, *, fp8_kv_cache: bool) -> Iterator[TensorSpec]:
        """Every tensor of this rank."""
        family, dims = self._dims.family, self._dims
        if self._pp_rank == 0:
            yield self._plain("transformer.vocab_embedding.weight", [self._rectangle("", "embedding")])
        layers = self._parallelism.layers_of(self._pp_rank, dims.num_hidden_layers)
        for position, index in enumerate(layers):
            ours, theirs = f"{family.layers}.{index}.", f"transformer.layers.{position}"
            yield from self._norm(f"{theirs}.input_layernorm", ours, "attention_norm")
            yield from self._linear(f"{theirs}.attention.qkv", ours, ("q", "k", "v"))
            for part in ("q_norm", "k_norm") if family.has_head_norms else ():
                yield from self._norm(f"{theirs}.attention.{part[0]}_layernorm", ours, part)
            yield from self._linear(f"{theirs}.attention.dense", ours, ("o",))
            if fp8_kv_cache:
                yield from self._kv_cache(f"{theirs}.attention", ours)
            yield from self._norm(f"{theirs}.post_layernorm", ours, "mlp_norm")
            inputs = ("gate", "up") if family.gated_mlp else ("up",)
            for name, part in zip(format_of(family).mlp_inputs, inputs, strict=True):
                yield from self._linear(f"{theirs}.mlp.{name}", ours, (part,))
            yield from self._linear(f"{theirs}.mlp.proj", ours, ("down",))
        if self._pp_rank == self._parallelism.pp_size - 1:
            yield from self._norm("transformer.ln_f", "", "final_norm")
            head = "embedding" if dims.tie_word_embeddings else "head"
            yield self._plain("lm_head.weight", [self._rectangle("", head)])

    def _norm(self, name: str, prefix: str, part: str) -> Iterator[TensorSpec]:
        weight = self._dims.family.find(part)
        assert weight is not None
        offset = self._dims.family.norm_offset
        values = self._reader.tensor(prefix + weight.name)
        yield whole(
            f"{name}.weight", self._cast(prefix + weight.name, values.float() + offset if offset else values)
        )
        if bias := self._dims.family.find(part, "bias"):
            ours = prefix + bias.name
            yield whole(f"{name}.bias", self._cast(ours, self._reader.tensor(ours)))

    def _kv_cache(self, name: str, prefix: str) -> Iterator[TensorSpec]:
        """The format's cache scales are never below one."""
        module = prefix + self._dims.family.module("k").rpartition(".")[0]
        scales = {kind: scale_of(self._maximum(f"{module}.{kind}_amax")).clamp(min=1.0) for kind in "kv"}
        scales["kv"] = torch.maximum(scales["k"], scales["v"])
        for kind, scale in scales.items():
            yield whole(f"{name}.{kind}_cache_scaling_factor", scale.reshape(1))

    def _range(self, axis: str) -> range:
        """This rank's channels of an axis; a key/value head that several ranks share is repeated."""
        dims, tp_size = self._dims, self._parallelism.tp_size
        units, width = dims.units(axis), dims.width(axis)
        if not AXES[axis].is_cut:
            return range(units * width)
        if axis == "vocab":
            units = padded_vocab(units, tp_size)
        num_units, first = max(1, units // tp_size), self._tp_rank * units // tp_size
        return range(first * width, (first + num_units) * width)

    def _rectangle(self, prefix: str, part: str, kind: str = "weight") -> Rectangle:
        """What this rank holds of a part of the model."""
        dims = self._dims
        weight = dims.family.find(part, kind)
        assert weight is not None
        first = dims.first_row(weight, part)
        rows = self._range(weight.rows[part])
        columns = None
        if weight.columns is not None:
            chosen = self._range(weight.columns)
            columns = slice(chosen.start, chosen.stop)
        return Rectangle(
            name=prefix + weight.name, start=first + rows.start, num_rows=len(rows), columns=columns
        )

    def _linear(self, name: str, prefix: str, parts: tuple[str, ...]) -> Iterator[TensorSpec]:
        """A linear layer: its weight, with its scales in FP8, and its bias."""
        family = self._dims.family
        rectangles = [self._rectangle(prefix, part) for part in parts]
        if self._amax is None:
            yield self._plain(f"{name}.weight", rectangles)
        else:
            module = family.module(parts[0])
            sharing = next(group for group in family.sharing_input if module in group)
            weight_scale, input_scale = (
                scale_of(torch.stack([self._maximum(f"{prefix}{m}.{kind}_amax") for m in sharing]).max())
                for kind in ("weight", "input")
            )
            yield self._spec(
                f"{name}.weight", rectangles, E4M3, lambda _name, block: to_e4m3(block, weight_scale)
            )
            yield whole(f"{name}.weights_scaling_factor", weight_scale.reshape(1))
            yield whole(f"{name}.activation_scaling_factor", input_scale.reshape(1))
        if family.find(parts[0], "bias"):
            yield self._plain(f"{name}.bias", [self._rectangle(prefix, part, "bias") for part in parts])

    def _plain(self, name: str, rectangles: list[Rectangle]) -> TensorSpec:
        return self._spec(name, rectangles, self._dtype, self._cast)

    def _spec(
        self, name: str, rectangles: list[Rectangle], dtype: torch.dtype, convert: _Convert
    ) -> TensorSpec:
        num_rows, columns = sum(part.num_rows for part in rectangles), rectangles[0].columns
        shape = (num_rows,) if columns is None else (num_rows, columns.stop - columns.start)
        return TensorSpec(
            name=name, shape=shape, dtype=dtype, blocks=lambda: self._blocks(rectangles, convert)
        )

    def _blocks(self, rectangles: list[Rectangle], convert: _Convert) -> Iterable[torch.Tensor]:
        for part in rectangles:
            tensor = self._reader.tensor(part.name)
            rows = tensor[part.start : part.start + part.num_rows]
            for block in row_blocks(rows):
                yield convert(part.name, block if part.columns is None else block[:, part.columns])
            missing = part.num_rows - rows.shape[0]
            if missing:
                yield convert(part.name, tensor.new_zeros(missing, *tensor.shape[1:]))

    def _cast(self, name: str, values: torch.Tensor) -> torch.Tensor:
        cast = values.to(self._dtype)
        if not torch.isfinite(cast).all():
            raise VerificationError(
                "a weight overflows the export's dtype",
                where=name,
                expected=self._dtype,
                found=f"{values.float().abs().max().item():g}",
                hint="use --precision bf16",
            )
        return cast

    def _maximum(self, name: str) -> torch.Tensor:
        return recorded(self._amax or {}, name)
