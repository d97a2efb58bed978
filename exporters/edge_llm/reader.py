"""An independent reader of TensorRT-Edge-LLM's export: every tensor of the model, as its files hold it.

It knows nothing of the converter but what the graph computes (exporters/edge_llm/layout.py). Tensors are
read one at a time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from compressor.core.errors import VerificationError
from compressor.models.axes import Weight
from compressor.models.shapes import expected_shapes
from compressor.quantization.amax import check_positive
from compressor.quantization.e4m3 import E4M3
from exporters.checks.equality import expect_equal
from exporters.edge_llm.graph import EdgeGraph
from exporters.edge_llm.layout import StoredLinear, StoredModel, Walk
from exporters.edge_llm.runtime_config import (
    CACHE_DTYPES,
    CACHE_FIELD,
    EPSILON_FIELD,
    MODEL_FIELD,
    dims_of_runtime,
    read_runtime_config,
)

GRAPH_DIRECTORY = "llm"
EMBEDDING_FILE, EMBEDDING = "embedding.safetensors", "embedding"


class EdgeReader:
    """An export seen as one model, of the shape that its own config states.

    Whatever is wrong with it is a VerificationError that names the tensor, the operator or the file.
    """

    def __init__(self, out_dir: Path) -> None:
        """Read the config and walk the graph."""
        self.directory = out_dir / GRAPH_DIRECTORY
        self.config = read_runtime_config(self.directory)
        self.dims = dims_of_runtime(self.config, tied=False)
        if self.dims.family.norm_has_bias or not self.dims.family.gated_mlp:
            raise VerificationError(
                "such a graph cannot be of this kind of model",
                where=f"{self.directory}: {MODEL_FIELD}",
                found=self.dims.model_type,
            )
        self.weights: dict[str, tuple[Weight, int | None]] = self.dims.weights()
        self._axes = {part: axis for own, _ in self.weights.values() for part, axis in own.rows.items()}
        self.graph = EdgeGraph(self.directory)
        self.is_fp8 = self.graph.stores(E4M3)
        cache = self.config.get(CACHE_FIELD)
        if cache not in CACHE_DTYPES.values():
            raise VerificationError(
                "the KV cache has an unknown type", where=f"{self.directory}: {CACHE_FIELD}", found=cache
            )
        self.has_fp8_kv_cache = cache == CACHE_DTYPES[True]
        self.model: StoredModel = Walk(
            graph=self.graph,
            dims=self.dims,
            epsilon=float(self.config[EPSILON_FIELD]),
            fp8=self.is_fp8,
            fp8_kv_cache=self.has_fp8_kv_cache,
        ).model()

    def stored(self, name: str) -> torch.Tensor:
        """A tensor of the model by its full name, as the files hold it: float16, or E4M3 numbers."""
        weight, index = self.weights[name]
        if index is None:
            if "embedding" in weight.rows:
                return self._embedding()
            return self.graph.tensor(self.model.head if "head" in weight.rows else self.model.final_norm)
        if weight.columns is None and weight.kind == "weight":
            return self.graph.tensor(self.model.layers[index].norms[next(iter(weight.rows))])
        return torch.cat([self._part(index, weight, part) for part in weight.rows])

    def scales(self, index: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The float16 scales of an FP8 layer's weight and of its input."""
        linear = self._linear(index, part)
        assert linear.weight_scale is not None
        assert linear.input_scale is not None
        return self.graph.tensor(linear.weight_scale), self.graph.tensor(linear.input_scale)

    def check_tensors(self) -> int:
        """Refuse a tensor of another type or shape, or that is not finite; returns their number."""
        shapes = expected_shapes(self.dims)
        for name, (weight, index) in self.weights.items():
            found = self.stored(name)
            is_fp8 = self.is_fp8 and index is not None and weight.columns is not None
            expected = (E4M3 if is_fp8 else torch.float16, list(shapes[name]))
            what = "the export stores a tensor in another type or shape"
            expect_equal(what, expected, (found.dtype, list(found.shape)), where=name)
            if not torch.isfinite(found.float()).all():
                raise VerificationError("a weight is not finite", where=name, found="NaN or inf")
        if self.is_fp8:
            self.check_scales()
        return len(self.weights)

    def check_scales(self) -> None:
        """Refuse scales that no calibration could have left."""
        for index, layer in enumerate(self.model.layers):
            for linear in layer.linears:
                names = ("weight_scale", "input_scale")
                for name, scale in zip(names, self.scales(index, linear.parts[0]), strict=True):
                    where = f"layer {index}, {linear.parts[0]}: {name}"
                    check_positive(where, scale, what="a scale is unusable")
            for scale_of_cache in layer.cache_scales or ():
                where = f"layer {index}: qkv_scales"
                check_positive(where, torch.tensor(scale_of_cache), what="a scale is unusable")

    def _linear(self, index: int, part: str) -> StoredLinear:
        return next(linear for linear in self.model.layers[index].linears if part in linear.parts)

    def _part(self, index: int, weight: Weight, part: str) -> torch.Tensor:
        """The rows of one part, `[out, in]`, or its entries of a bias."""
        linear = self._linear(index, part)
        stored = linear.weight if weight.kind == "weight" else linear.bias
        assert stored is not None
        tensor = self.graph.tensor(stored)
        if linear.transposed and weight.kind == "weight":
            tensor = tensor.T
        sizes = [self.dims.size(self._axes[name]) for name in linear.parts]
        if sum(sizes) != tensor.shape[0]:
            raise VerificationError(
                "the export stores a tensor in another shape",
                where=f"{self.directory}: {stored}",
                expected=f"{sum(sizes)} outputs",
                found=list(tensor.shape),
            )
        rows: torch.Tensor = tensor.split(sizes)[linear.parts.index(part)].contiguous()
        return rows

    def _embedding(self) -> torch.Tensor:
        file = self.directory / EMBEDDING_FILE
        if not file.is_file():
            raise VerificationError("the export lacks a file", where=str(file))
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise VerificationError("the embedding is corrupt", where=str(file), found=error) from error
        expect_equal("the embedding's file holds other tensors", [EMBEDDING], list(tensors), where=str(file))
        return tensors[EMBEDDING]
