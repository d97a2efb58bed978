"""The sparsify stage: one-shot N:M sparsity, layer by layer, on the compressed model's own activations.

It leaves a Hugging Face checkpoint, the record in `sparsity.json`, and the packed masks. Embeddings,
LM head and norms stay dense.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from compressor.calibration.rewrite import read_kept, write_rewritten
from compressor.calibration.sequential import Gram, LayerVisit, run_sequentially
from compressor.calibration.text import read_calibration
from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.core.errors import UnsupportedError, VerificationError
from compressor.data.calibration import CalibrationWindows
from compressor.data.sources import source_fingerprint
from compressor.models.checkpoint import (
    CheckpointReader,
    TensorSpec,
    read_config,
    write_safetensors,
)
from compressor.models.digests import tensor_digest, write_digests
from compressor.models.dims import Dims, dims_of_config
from compressor.models.sparse.low_rank import AdapterBranch, branch_digests, write_adapter
from compressor.models.sparse.pattern import Pattern, parse_pattern, require_whole_groups
from compressor.models.sparse.record import MASKS_FILE, SPARSITY_FILE, SparsityRecord, write_masks
from compressor.recipe.option import content_of, fields_of
from compressor.recipe.recipe import Calibration, Section, Sparsify
from compressor.repair.branch import start_branch
from compressor.repair.least_squares import NotPositiveDefiniteError
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh
from compressor.sparsity.method import Choice, OneShotSettings
from compressor.sparsity.requirements import covered_weights
from compressor.sparsity.swaps import refined

_SCRATCH = "scratch"
# Names how branches start, which decides bytes only where there are some.
_BRANCH_START = "least squares"


class SparsifyStageConfig(Section):
    """The sections of a recipe that decide this stage."""

    sparsify: Sparsify
    calibration: Calibration


def run(
    config: SparsifyStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Sparsify `source` without training.

    Raises:
        UsageError: without a pattern, or when the skip list leaves nothing.
        UnsupportedError: for a tensor that does not divide into groups, or a model that is sparse already.
        VerificationError: when a Hessian is not positive definite, or a weight not finite, naming it.
    """
    start_afresh(out_dir)
    stored = read_config(source.path)
    dims = dims_of_config(stored)
    sparsify = config.sparsify
    pattern = parse_pattern(sparsify.pattern or "")
    names = covered_weights(dims, sparsify.skip)
    sparsity = _sparsity(source.path, dims, names, pattern)
    scratch = out_dir / _SCRATCH
    scratch.mkdir()
    windows = read_calibration(config.calibration, source.path, context)
    visitor = _Visitor(sparsify, pattern, names, scratch)
    dtype = getattr(torch, context.dtype)
    with context.console.progress("sparsifying", dims.num_hidden_layers * len(windows.ids)) as tick:
        changed = run_sequentially(
            source.path,
            windows.ids,
            visitor.visit,
            scratch=scratch,
            dtype=dtype,
            device=context.device,
            trust_remote_code=context.trust_remote_code,
            on_window=tick,
        )
    write_digests(out_dir, visitor.digests)
    write_rewritten(source.path, out_dir, changed, dtype)
    sparsity.write(out_dir)
    _write_masks(out_dir / MASKS_FILE, visitor.masks)
    if visitor.branches:
        write_adapter(out_dir, visitor.branches)
    shutil.rmtree(scratch)
    raised = [name for name, entry in visitor.layers.items() if entry.get("dampening_was_raised")]
    if raised:
        context.console.warn(f"dampening was raised for {len(raised)} matrices, first {raised[0]}")
    return StageResult(
        num_parameters=source.num_parameters, details=_details(visitor, sparsify, pattern, windows)
    )


class _Visitor:
    """Sparsifies layer by layer, keeping figures and adapter branches, and masks in files of `scratch`."""

    def __init__(self, sparsify: Sparsify, pattern: Pattern, names: list[str], scratch: Path) -> None:
        self._sparsify = sparsify
        self._settings = OneShotSettings(
            pattern=pattern,
            block_size=sparsify.block_size,
            dampening_fraction=sparsify.dampening_fraction,
            raise_dampening=sparsify.raise_dampening,
        )
        self._names = frozenset(names)
        self._scratch = scratch
        self.masks: dict[str, Path] = {}
        self.layers: dict[str, dict[str, object]] = {}
        self.branches: dict[str, AdapterBranch] = {}
        self.digests: dict[str, str] = {}
        self.num_nonzero = 0
        self.num_weights = 0

    def visit(self, layer: LayerVisit) -> dict[str, torch.Tensor]:
        replaced, masks = {}, {}
        for name, linear in layer.linears.items():
            full = f"{layer.prefix}{name}.weight"
            if full not in self._names:
                continue
            try:
                replaced[name], masks[full] = self._sparse(full, linear.weight, layer.grams[name])
            except NotPositiveDefiniteError as error:
                raise VerificationError(
                    str(error), where=full, hint="use more calibration text, or --raise-dampening"
                ) from error
            if (branch := self.branches.get(full.removesuffix(".weight"))) is not None:
                layer.beside[name] = (branch.up @ branch.down).to(linear.weight.device)
        path = self._scratch / f"masks-{layer.index}.safetensors"
        write_masks(path, masks)
        self.masks |= dict.fromkeys(masks, path)
        return replaced

    def _sparse(self, name: str, dense: torch.Tensor, inputs: Gram) -> tuple[torch.Tensor, torch.Tensor]:
        """A matrix made sparse in float32 and stored in its own dtype, and its mask; both are recorded."""
        weight = dense.float()
        choice: Choice = SPARSITY_METHODS[self._sparsify.method].load()(weight, inputs, self._settings)
        if not self._sparsify.update_weights:
            choice = replace(choice, weight=None)
        if sweeps := self._sparsify.swaps:
            choice = refined(choice, weight, inputs.total, self._settings.pattern, sweeps=sweeps)
        updated = weight if choice.weight is None else choice.weight
        sparse = updated.masked_fill(~choice.keep_mask, 0).to(dense.dtype)
        error = relative_error(weight, sparse.float(), inputs.total)
        if not math.isfinite(error):
            raise VerificationError(
                "this weight cannot be sparsified", where=name, expected="finite values and outputs"
            )
        num_nonzero = int((sparse != 0).sum())
        self.num_nonzero += num_nonzero
        self.num_weights += sparse.numel()
        entry: dict[str, object] = {
            "relative_error": float(f"{error:.6g}"),
            "density": num_nonzero / sparse.numel(),
        }
        if choice.dampening_fraction is not None:
            entry["dampening_fraction"] = choice.dampening_fraction
            entry["dampening_was_raised"] = choice.dampening_fraction > self._settings.dampening_fraction
        self.layers[name] = entry
        self.digests[name] = tensor_digest(sparse)
        if (group_size := self._sparsify.slorb_group_size) is not None:
            module = name.removesuffix(".weight")
            branch = start_branch(dense, sparse, inputs.total, group_size=group_size)
            acting = sparse.float() + (branch.up @ branch.down).to(sparse.device)
            error = relative_error(weight, acting, inputs.total)
            entry["relative_error_with_branch"] = float(f"{error:.6g}")
            self.branches[module] = branch
            self.digests |= branch_digests(module, branch)
        return sparse, choice.keep_mask


def relative_error(weight_RC: torch.Tensor, changed_RC: torch.Tensor, gram_CC: torch.Tensor) -> float:
    """||(W' - W) X||² / ||W X||² from the Gram matrix of X; 0 when the output itself is 0."""
    difference = changed_RC - weight_RC
    lost = ((difference @ gram_CC) * difference).sum(dtype=torch.float64).item()
    total = ((weight_RC @ gram_CC) * weight_RC).sum(dtype=torch.float64).item()
    return lost / total if total else 0.0


def _sparsity(checkpoint: Path, dims: Dims, names: list[str], pattern: Pattern) -> SparsityRecord:
    """What the stage will record, its shapes checked."""
    if (checkpoint / SPARSITY_FILE).is_file():
        raise UnsupportedError(
            "this checkpoint is sparse already", where=str(checkpoint), hint="start from its dense source"
        )
    with CheckpointReader(checkpoint) as reader:
        shapes = {name: reader.shape(name) for name in names}
    for name, shape in shapes.items():
        require_whole_groups(name, shape, pattern)
    pairs = {name: (rows, columns) for name, (rows, columns) in shapes.items()}
    return SparsityRecord(pattern=pattern, model_type=dims.model_type, shapes=pairs)


def _write_masks(path: Path, files: dict[str, Path]) -> None:
    """Gather every layer's packed masks in one file, one tensor at a time."""

    def spec(name: str, file: Path) -> TensorSpec:
        packed = read_kept(file, name)
        return TensorSpec(
            name=name, shape=tuple(packed.shape), dtype=packed.dtype, blocks=lambda: [read_kept(file, name)]
        )

    write_safetensors(path, [spec(name, file) for name, file in files.items()])


def _details(
    visitor: _Visitor, sparsify: Sparsify, pattern: Pattern, windows: CalibrationWindows
) -> dict[str, object]:
    details = {
        "pattern": str(pattern),
        "method": sparsify.method,
        "num_tensors": len(visitor.layers),
        "num_windows": len(windows.ids),
        "window_tokens": windows.ids.shape[1],
        "calibration": windows.record,
        "density": round(visitor.num_nonzero / visitor.num_weights, 6),
        "layers": visitor.layers,
    }
    if visitor.branches:
        details["adapter_parameters"] = sum(branch.num_parameters for branch in visitor.branches.values())
    return details


ONE_SHOT_FIELDS = (
    *("pattern", "method", "skip", "block_size", "dampening_fraction", "raise_dampening", "update_weights"),
    *("swaps", "slorb", "slorb_group"),
)


def _content(config: SparsifyStageConfig) -> dict[str, object]:
    """All but what decides the training that follows."""
    sparsify = fields_of(content_of(config.sparsify), *ONE_SHOT_FIELDS)
    start = {} if config.sparsify.slorb == "off" else {"branch_start": _BRANCH_START}
    return {"sparsify": sparsify, "calibration": content_of(config.calibration), **start}


SPARSIFY: Stage[SparsifyStageConfig] = Stage(
    name="sparsify",
    run=run,
    format_version=2,
    libraries=("torch", "transformers", "accelerate"),
    content=_content,
    data=lambda config: (config.calibration.data,),
    fingerprint=source_fingerprint,
)
