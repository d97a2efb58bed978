"""An independent reader of TensorRT-LLM checkpoints: merges the ranks back into a Hugging Face model.

It shares no layout code with the writer. What the loader of TensorRT-LLM would only warn about, or
take silently, is refused here: left-over tensors, copies that differ between ranks, padding that is
not zero, scales that no calibration could have left.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from compressor.core.errors import VerificationError
from compressor.models.dims import Dims, dims_of_config
from compressor.models.shapes import expected_shapes
from compressor.quantization.amax import check_positive
from compressor.quantization.e4m3 import E4M3, from_e4m3
from compressor.quantization.reader import Fp8Scales, model_of_state, simulate_fp8_
from exporters.checks.equality import expect_equal
from exporters.tensorrt_llm.read_config import family_of, huggingface_config, read_trtllm_config

_WEIGHT_SCALE, _INPUT_SCALE = ".weights_scaling_factor", ".activation_scaling_factor"
_Merge = Callable[[list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where one of the model's tensors lies: its name in the files of one pipeline stage.

    `merge` goes from the ranks' tensors, in order, to the whole one; `is_linear` says whether FP8 covers it;
    `offset` is what the format adds to the stored value.
    """

    name: str
    stage: int
    merge: _Merge
    is_linear: bool = False
    offset: float = 0.0


class TrtLlmReader:
    """A checkpoint seen as one Hugging Face model; use as a context manager.

    Whatever is wrong with it is a VerificationError that names the tensor, the scale or the file.
    """

    def __init__(self, directory: Path) -> None:
        """Open every rank and compare the tensors' names with what the config asks for."""
        self.directory, self.raw = directory, read_trtllm_config(directory)
        self.family = family_of(self.raw)
        self.config = huggingface_config(self.raw, self.family)
        self.dims: Dims = dims_of_config(self.config)
        self.tp_size, self.pp_size = self.raw["mapping"]["tp_size"], self.raw["mapping"]["pp_size"]
        self.is_fp8 = self.raw["quantization"].get("quant_algo") == "FP8"
        self.has_fp8_kv_cache = self.raw["quantization"].get("kv_cache_quant_algo") == "FP8"
        self.tensors = self._sources()
        self._stack = ExitStack()
        self._ranks = [self._open(rank) for rank in range(self.tp_size * self.pp_size)]
        self._check_names()

    def __enter__(self) -> TrtLlmReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def stored(self, name: str) -> torch.Tensor:
        """One of the model's tensors by its Hugging Face name: merged, as stored, the offset included."""
        source = self.tensors[name]
        parts = self._parts(source.stage, source.name)
        wanted = E4M3 if self.is_fp8 and source.is_linear else getattr(torch, self.raw["dtype"])
        for part in parts:
            expect_equal("a tensor has another dtype", wanted, part.dtype, where=source.name)
        if wanted == E4M3:
            # Concatenation and comparison work on bytes.
            return source.merge([part.view(torch.uint8) for part in parts]).view(E4M3)
        return source.merge(parts)

    def own_columns(self, name: str) -> list[torch.Tensor]:
        """What each rank holds of a tensor that is cut along its columns; nothing for any other."""
        source = self.tensors[name]
        return self._parts(source.stage, source.name) if source.merge is _columns else []

    def scales(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and input scale of a linear layer's tensor, float32 scalars."""
        source = self.tensors[name]
        base = source.name.removesuffix(".weight")
        return (
            self._scale(source.stage, base + _WEIGHT_SCALE),
            self._scale(source.stage, base + _INPUT_SCALE),
        )

    def kv_scale(self, layer: int, kind: str = "kv") -> torch.Tensor:
        """A layer's KV-cache scale, float32 scalar; `kind` is `kv`, `k` or `v`."""
        stage, prefix = self._layer(layer)
        return self._scale(stage, f"{prefix}.attention.{kind}_cache_scaling_factor")

    def linear_names(self) -> list[str]:
        """Hugging Face names of the tensors that FP8 covers."""
        return [name for name, source in self.tensors.items() if source.is_linear]

    def check_scales(self) -> None:
        """The lint: every scale is one finite number above zero, and not all of a kind are 1.0.

        KV-cache scales may all be 1.0: the format's minimum.
        """
        if self.is_fp8:
            pairs = [self.scales(name) for name in self.linear_names()]
            for kind, found in (("weight", [p[0] for p in pairs]), ("activation", [p[1] for p in pairs])):
                if all(scale.item() == 1.0 for scale in found):
                    raise VerificationError(
                        f"every {kind} scale is 1.0", where="scales", expected="amax / 448"
                    )
        if self.has_fp8_kv_cache:
            for layer in range(self.dims.num_hidden_layers):
                for kind in ("kv", "k", "v"):
                    self.kv_scale(layer, kind)

    def check_shapes(self) -> None:
        """Merge every tensor once; its shape must be the config's, and its values finite."""
        for name, shape in expected_shapes(self.dims).items():
            found = self.stored(name)
            expect_equal("a tensor has another shape", list(shape), list(found.shape), where=name)
            if not torch.isfinite(found.float()).all():
                raise VerificationError("weights are not finite", where=name, found="NaN or inf")

    def fp8_scales(self) -> Fp8Scales:
        """All scales by the model's names, for simulation."""
        names = self.linear_names() if self.is_fp8 else []
        pairs = {name.removesuffix(".weight"): self.scales(name) for name in names}
        layers = range(self.dims.num_hidden_layers) if self.has_fp8_kv_cache else range(0)
        caches = {layer: self.kv_scale(layer) for layer in layers}
        return Fp8Scales(
            weights={name: pair[0] for name, pair in pairs.items()},
            inputs={name: pair[1] for name, pair in pairs.items()},
            keys=caches,
            values=dict(caches),
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor in float32: FP8 multiplied out, offsets taken off."""
        state = {}
        for name, source in self.tensors.items():
            stored = self.stored(name)
            if stored.dtype == E4M3:
                state[name] = from_e4m3(stored, self.scales(name)[0])
            else:
                state[name] = stored.float() - source.offset
        return state

    def _open(self, rank: int) -> Any:
        path = self.directory / f"rank{rank}.safetensors"
        if not path.is_file():
            raise VerificationError("the checkpoint lacks a file", where=str(path))
        try:
            return self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            self._stack.close()
            raise VerificationError(
                "a weight file is truncated or corrupt", where=str(path), found=error
            ) from error

    def _check_names(self) -> None:
        """The files hold exactly what the config asks for."""
        ranks = sorted(self.directory.glob("rank*.safetensors"))
        what = "the checkpoint has another number of ranks"
        expect_equal(what, len(self._ranks), len(ranks), where=str(self.directory))
        for stage in range(self.pp_size):
            wanted = self._names_of(stage)
            for tp_rank in range(self.tp_size):
                file = self._ranks[stage * self.tp_size + tp_rank]
                for name in sorted(wanted ^ set(file.keys())):
                    what = "lacks a tensor" if name in wanted else "holds a tensor that nothing reads"
                    where = f"rank{stage * self.tp_size + tp_rank}: {name}"
                    raise VerificationError(f"the checkpoint {what}", where=where)

    def _names_of(self, stage: int) -> set[str]:
        sources = [source for source in self.tensors.values() if source.stage == stage]
        names = {source.name for source in sources}
        if self.is_fp8:
            bases = {source.name.removesuffix(".weight") for source in sources if source.is_linear}
            names |= {base + suffix for base in bases for suffix in (_WEIGHT_SCALE, _INPUT_SCALE)}
        if self.has_fp8_kv_cache:
            layers = [self._layer(layer) for layer in range(self.dims.num_hidden_layers)]
            prefixes = [prefix for where, prefix in layers if where == stage]
            names |= {
                f"{prefix}.attention.{kind}_cache_scaling_factor"
                for prefix in prefixes
                for kind in ("kv", "k", "v")
            }
        return names

    def _parts(self, stage: int, name: str) -> list[torch.Tensor]:
        first = stage * self.tp_size
        return [file.get_tensor(name) for file in self._ranks[first : first + self.tp_size]]

    def _scale(self, stage: int, name: str) -> torch.Tensor:
        scale = _same(name)(self._parts(stage, name))
        check_positive(name, scale, what="a scale is unusable")
        return scale.float().reshape(())

    def _layer(self, layer: int) -> tuple[int, str]:
        """Pipeline stage of a layer, and its prefix there."""
        counts = [
            self.dims.num_hidden_layers // self.pp_size + (stage < self.dims.num_hidden_layers % self.pp_size)
            for stage in range(self.pp_size)
        ]
        stage = 0
        while layer >= counts[stage]:
            layer -= counts[stage]
            stage += 1
        return stage, f"transformer.layers.{layer}"

    def _sources(self) -> dict[str, Stored]:
        family, last = self.family, self.pp_size - 1
        head = Stored(name="lm_head.weight", stage=last, merge=self._vocabulary)
        embedding = Stored(name="transformer.vocab_embedding.weight", stage=0, merge=self._vocabulary)
        sources = {f"{family.embedding}.weight": embedding, f"{family.lm_head}.weight": head}
        sources |= self._norm(family.final_norm, "transformer.ln_f", last)
        for layer in range(self.dims.num_hidden_layers):
            stage, prefix = self._layer(layer)
            sources |= self._layer_sources(f"{family.layers}.{layer}", prefix, stage)
        return sources

    def _layer_sources(self, ours: str, theirs: str, stage: int) -> dict[str, Stored]:
        family = self.family
        sources = self._norm(f"{ours}.{family.module('attention_norm')}", f"{theirs}.input_layernorm", stage)
        sources |= self._norm(f"{ours}.{family.module('mlp_norm')}", f"{theirs}.post_layernorm", stage)
        for number, role in enumerate(map(family.module, "qkv")):
            for kind in ("weight", "bias") if family.qkv_has_bias else ("weight",):
                name = f"{theirs}.attention.qkv.{kind}"
                sources[f"{ours}.{role}.{kind}"] = Stored(
                    name=name, stage=stage, merge=self._heads(number, name), is_linear=kind == "weight"
                )
        for kind in "qk" if family.has_head_norms else "":
            name = f"{theirs}.attention.{kind}_layernorm.weight"
            sources[f"{ours}.{family.module(f'{kind}_norm')}.weight"] = Stored(
                name=name, stage=stage, merge=_same(name)
            )
        facts = family.tensorrt_llm
        assert facts is not None
        linears = [("o", "attention.dense", _columns), ("down", "mlp.proj", _columns)]
        inputs = zip(("gate", "up") if family.gated_mlp else ("up",), facts.mlp_inputs, strict=True)
        linears += [(part, f"mlp.{name}", _rows) for part, name in inputs]
        for part, name, merge in linears:
            sources[f"{ours}.{family.module(part)}.weight"] = Stored(
                name=f"{theirs}.{name}.weight", stage=stage, merge=merge, is_linear=True
            )
        return sources

    def _norm(self, ours: str, theirs: str, stage: int) -> dict[str, Stored]:
        offset = self.family.norm_offset
        name = f"{theirs}.weight"
        found = {f"{ours}.weight": Stored(name=name, stage=stage, merge=_same(name), offset=offset)}
        if self.family.norm_has_bias:
            bias = f"{theirs}.bias"
            found[f"{ours}.bias"] = Stored(name=bias, stage=stage, merge=_same(bias))
        return found

    def _vocabulary(self, parts: list[torch.Tensor]) -> torch.Tensor:
        joined, size = torch.cat(parts), self.dims.vocab_size
        if joined[size:].any():
            raise VerificationError("the vocabulary's padding is not zero", where="vocabulary")
        return joined[:size]

    def _heads(self, part: int, name: str) -> _Merge:
        """Query (0), key (1) or value (2) rows of every rank, a head held by several of them once."""
        dims, tp_size = self.dims, self.tp_size
        query = dims.num_attention_heads // tp_size * dims.head_dim
        copies = max(1, tp_size // dims.num_key_value_heads)
        key = dims.num_key_value_heads * copies // tp_size * dims.head_dim

        def merge(ranks: list[torch.Tensor]) -> torch.Tensor:
            for rank in ranks:
                expect_equal(
                    "a tensor has another number of rows", query + 2 * key, rank.shape[0], where=name
                )
            chosen = [rank.split([query, key, key])[part] for rank in ranks]
            if part == 0 or copies == 1:
                return torch.cat(chosen)
            groups = [chosen[start : start + copies] for start in range(0, tp_size, copies)]
            return torch.cat([_same(name)(group) for group in groups])

        return merge


def load_trtllm_model(directory: Path, *, device: str) -> Any:
    """Load a checkpoint for evaluation in float32, FP8 simulated; nothing but the directory is read."""
    from transformers import AutoConfig

    with TrtLlmReader(directory) as reader:
        reader.check_scales()
        fields = {key: value for key, value in reader.config.items() if key != "model_type"}
        config = AutoConfig.for_model(reader.config["model_type"], **fields)
        model = model_of_state(config, reader.state(), dtype="float32", where=directory)
        if reader.is_fp8:
            simulate_fp8_(model, reader.fp8_scales())
    return model.to(device).eval().requires_grad_(requires_grad=False)


def _same(name: str) -> _Merge:
    """Take one of the copies that several ranks hold, which must be equal."""

    def merge(copies: list[torch.Tensor]) -> torch.Tensor:
        if any(not torch.equal(copies[0], copy) for copy in copies[1:]):
            raise VerificationError("the ranks hold different copies", where=name)
        return copies[0]

    return merge


def _rows(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts)


def _columns(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts, dim=1)
