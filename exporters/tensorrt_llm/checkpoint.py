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
from compressor.models.families import Family
from compressor.quantization.amax import AMAX_FILE
from compressor.quantization.e4m3 import E4M3, scale_of, to_e4m3
from exporters.tensorrt_llm.config import Parallelism, checkpoint_config, format_of, padded_vocab

Amax = dict[str, torch.Tensor]
_Convert = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Part:
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
    """Write the checkpoint of a 16- or 32-bit Hugging Face checkpoint.

    Args:
        source: The student.
        out_dir: An existing directory.
        dtype: Of everything that is not FP8.
        parallelism: The ranks.
        amax: Recorded maxima; given, the decoder's linear layers become FP8.
        fp8_kv_cache: Whether keys and values are FP8 as well.
        on_tensor: Called after every written tensor.

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

    @property
    def _family(self) -> Family:
        return self._dims.family

    def specs(self, *, fp8_kv_cache: bool) -> Iterator[TensorSpec]:
        """Every tensor of this rank."""
        family, dims = self._family, self._dims
        if self._pp_rank == 0:
            yield self._vocabulary("transformer.vocab_embedding.weight", family.embedding)
        layers = self._parallelism.layers_of(self._pp_rank, dims.num_hidden_layers)
        for position, index in enumerate(layers):
            ours, theirs = f"{family.layers}.{index}", f"transformer.layers.{position}"
            yield from self._norm(f"{theirs}.input_layernorm", f"{ours}.{family.attention_norm}")
            yield from self._attention(f"{theirs}.attention", ours)
            if fp8_kv_cache:
                yield from self._kv_cache(f"{theirs}.attention", ours)
            yield from self._norm(f"{theirs}.post_layernorm", f"{ours}.{family.mlp_norm}")
            yield from self._mlp(f"{theirs}.mlp", ours)
        if self._pp_rank == self._parallelism.pp_size - 1:
            yield from self._norm("transformer.ln_f", family.final_norm)
            head = family.embedding if dims.tie_word_embeddings else family.lm_head
            yield self._vocabulary("lm_head.weight", head)

    def _vocabulary(self, name: str, module: str) -> TensorSpec:
        rows = padded_vocab(self._dims.vocab_size, self._parallelism.tp_size) // self._parallelism.tp_size
        part = Part(name=f"{module}.weight", start=self._tp_rank * rows, num_rows=rows)
        return self._plain(name, (part,), self._dims.hidden_size)

    def _norm(self, name: str, module: str) -> Iterator[TensorSpec]:
        offset = self._family.norm_offset
        weight = self._reader.tensor(f"{module}.weight")
        shifted = weight.float() + offset if offset else weight
        yield whole(f"{name}.weight", self._cast(f"{module}.weight", shifted))
        if self._family.norm_has_bias:
            bias = self._reader.tensor(f"{module}.bias")
            yield whole(f"{name}.bias", self._cast(f"{module}.bias", bias))

    def _attention(self, name: str, layer: str) -> Iterator[TensorSpec]:
        family, hidden = self._family, self._dims.hidden_size
        query, key = self._head_rows()
        rows = ((family.q_proj, query), (family.k_proj, key), (family.v_proj, key))
        modules = [f"{layer}.{role}" for role, _ in rows]
        ranges = [chosen for _, chosen in rows]
        parts = tuple(
            _rows(f"{module}.weight", chosen) for module, chosen in zip(modules, ranges, strict=True)
        )
        yield from self._linear(f"{name}.qkv", modules, parts, hidden)
        if family.qkv_has_bias:
            biases = tuple(
                _rows(f"{module}.bias", chosen) for module, chosen in zip(modules, ranges, strict=True)
            )
            yield self._plain(f"{name}.qkv.bias", biases, None)
        for kind, role in zip("qk", family.head_norms, strict=False):
            norm = f"{layer}.{role}.weight"
            yield whole(f"{name}.{kind}_layernorm.weight", self._cast(norm, self._reader.tensor(norm)))
        output = f"{layer}.{family.o_proj}"
        part = Part(name=f"{output}.weight", start=0, num_rows=hidden, columns=_slice(query))
        yield from self._linear(f"{name}.dense", [output], (part,), len(query))

    def _mlp(self, name: str, layer: str) -> Iterator[TensorSpec]:
        family, dims = self._family, self._dims
        size = dims.intermediate_size // self._parallelism.tp_size
        neurons = range(self._tp_rank * size, (self._tp_rank + 1) * size)
        modules = [f"{layer}.{role}" for role in family.mlp_inputs]
        for theirs, module in zip(format_of(family).mlp_inputs, modules, strict=True):
            parts = (_rows(f"{module}.weight", neurons),)
            yield from self._linear(f"{name}.{theirs}", modules, parts, dims.hidden_size)
        output = f"{layer}.{family.down_proj}"
        part = Part(name=f"{output}.weight", start=0, num_rows=dims.hidden_size, columns=_slice(neurons))
        yield from self._linear(f"{name}.proj", [output], (part,), size)

    def _kv_cache(self, name: str, layer: str) -> Iterator[TensorSpec]:
        """The format's cache scales are never below one."""
        module = f"{layer}.{self._family.k_proj.rpartition('.')[0]}"
        scales = {kind: scale_of(self._recorded(f"{module}.{kind}_amax")).clamp(min=1.0) for kind in "kv"}
        scales["kv"] = torch.maximum(scales["k"], scales["v"])
        for kind, scale in scales.items():
            yield whole(f"{name}.{kind}_cache_scaling_factor", scale.reshape(1))

    def _head_rows(self) -> tuple[range, range]:
        """Rows of this rank's query heads, and of its key/value heads; a shared head is repeated."""
        dims, tp_size = self._dims, self._parallelism.tp_size
        size = dims.num_attention_heads // tp_size * dims.head_dim
        num_key_heads = max(1, dims.num_key_value_heads // tp_size)
        first = self._tp_rank * dims.num_key_value_heads // tp_size
        keys = range(first * dims.head_dim, (first + num_key_heads) * dims.head_dim)
        return range(self._tp_rank * size, (self._tp_rank + 1) * size), keys

    def _linear(
        self, name: str, sharing: list[str], parts: tuple[Part, ...], num_columns: int
    ) -> Iterator[TensorSpec]:
        """A linear layer's weight, with its scales in FP8; `sharing` are the modules of one scale."""
        if self._amax is None:
            yield self._plain(f"{name}.weight", parts, num_columns)
            return
        weight_scale, input_scale = (
            scale_of(torch.stack([self._recorded(f"{module}.{kind}_amax") for module in sharing]).max())
            for kind in ("weight", "input")
        )
        yield self._spec(
            f"{name}.weight", parts, num_columns, E4M3, lambda _name, block: to_e4m3(block, weight_scale)
        )
        yield whole(f"{name}.weights_scaling_factor", weight_scale.reshape(1))
        yield whole(f"{name}.activation_scaling_factor", input_scale.reshape(1))

    def _plain(self, name: str, parts: tuple[Part, ...], num_columns: int | None) -> TensorSpec:
        return self._spec(name, parts, num_columns, self._dtype, self._cast)

    def _spec(
        self,
        name: str,
        parts: tuple[Part, ...],
        num_columns: int | None,
        dtype: torch.dtype,
        convert: _Convert,
    ) -> TensorSpec:
        num_rows = sum(part.num_rows for part in parts)
        shape = (num_rows,) if num_columns is None else (num_rows, num_columns)
        return TensorSpec(name=name, shape=shape, dtype=dtype, blocks=lambda: self._blocks(parts, convert))

    def _blocks(self, parts: tuple[Part, ...], convert: _Convert) -> Iterable[torch.Tensor]:
        for part in parts:
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
                hint="--precision bf16",
            )
        return cast

    def _recorded(self, name: str) -> torch.Tensor:
        if self._amax is None or name not in self._amax:
            raise VerificationError("calibration recorded no such maximum", where=name, expected=AMAX_FILE)
        return self._amax[name].float().reshape(())


def _rows(name: str, chosen: range) -> Part:
    return Part(name=name, start=chosen.start, num_rows=len(chosen))


def _slice(chosen: range) -> slice:
    return slice(chosen.start, chosen.stop)
