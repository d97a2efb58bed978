"""What a stage left, against a second source: its input, its plan, or what it recorded from memory.

| stage | weights | config and tokenizer |
|---|---|---|
| prune | the source or its rotation, cut by a second slicer; removals | the source's, but for planned axes |
| prune-masks | probes, digests; of frozen weights the source's times the masks, cut | as after prune |
| sparsify | kept weights, masks and dense tensors of the source; digests from memory | the source's |
| reconstruct | the source's where a layer was left; digests from memory elsewhere; masks | the source's |
| reconstruct-fp8 | as reconstruct; repaired ones on the FP8 grid; maxima from the source's | the source's |
| distill, correct, recover | probes and digests from memory | the source's |
| evaluate | every figure of a text from those of its windows; no model | none |
| evaluate-tasks | scores and comparisons from those of the items; no model | none |
| evaluate-chat | figures and comparisons from replies and conversations; no model | none |
| search | sizes, speeds and ranks of its table computed again; no model | none |
| quantize | the source's, and rounded once with scales of its own maxima | the source's |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.digests import read_digests, tensor_digest
from compressor.models.load import load_model
from compressor.models.sparse.low_rank import AdapterBranch, branch_digests, has_adapter, read_adapter
from compressor.models.sparse.record import MASKS_FILE, SPARSITY_FILE, read_sparsity
from compressor.pruning.plan import PLAN_FILE
from compressor.pruning.rotation import ROTATION_FILE
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, read_amax
from compressor.quantization.record import RECORD_FILE
from compressor.runs.artifact import ModelArtifact
from compressor.training.probes import check_probes, read_probes
from exporters.checks.chat import check_chat
from exporters.checks.config import check_config, check_tokenizer_files
from exporters.checks.depth import check_depth, check_layer_importance
from exporters.checks.equality import expect_bits, expect_figures, expect_same_file
from exporters.checks.learned import check_learned
from exporters.checks.perplexities import check_perplexities
from exporters.checks.pruned import check_pruned
from exporters.checks.requantised import check_maxima, check_on_grid, check_zeros
from exporters.checks.scores import check_scores
from exporters.checks.searched import check_searched
from exporters.checks.sparsified import check_branches, check_masks, check_moved_masks, check_sparsified
from exporters.verification.logits import VerifyOptions

Found = dict[str, JsonValue]


def check_stage(
    directory: Path, artifact: ModelArtifact, source: Path | None, options: VerifyOptions
) -> Found:
    """Check what a stage left, as far as there is something to check it against; `source` may not be known.

    Returns what was found; of a stage that makes no model, that it is as recorded.
    """
    if artifact.stage == "search":
        return check_searched(directory, artifact, source)
    if artifact.stage == "evaluate":
        return check_perplexities(directory, artifact)
    if artifact.stage == "evaluate-tasks":
        return check_scores(directory, artifact)
    if artifact.stage == "evaluate-chat":
        return check_chat(directory, artifact)
    check = _CHECKS.get(artifact.stage)
    if check is None:
        return {"contents": "as recorded"}
    return check(directory, artifact, source, options)


def _pruned(directory: Path, artifact: ModelArtifact, source: Path | None, _options: VerifyOptions) -> Found:
    check_layer_importance(directory, artifact.details)
    found = check_depth(directory, artifact.details)
    return found if source is None else {**found, **check_pruned(directory, artifact, source)}


def _learned(directory: Path, artifact: ModelArtifact, source: Path | None, options: VerifyOptions) -> Found:
    found: Found = {**_check_digests(directory, whole_model=True), **_check_probes(directory, options)}
    _check_course(directory, artifact)
    return found if source is None else found | check_learned(directory, artifact, source)


def _sparsified(
    directory: Path, artifact: ModelArtifact, source: Path | None, _options: VerifyOptions
) -> Found:
    found: Found = {**_check_digests(directory), **check_masks(directory, artifact)}
    if source is not None:
        found |= check_sparsified(directory, artifact, source)
        _same_model(directory, source)
    return found


def _reconstructed(
    directory: Path, artifact: ModelArtifact, source: Path | None, _options: VerifyOptions
) -> Found:
    """Only what least squares was accepted for differs from the source, and zeros are where the masks say."""
    found: Found = _check_digests(directory)
    layers = artifact.details.get("layers", {})
    accepted = {name for name, layer in layers.items() if layer.get("accepted")}
    stepped = [f"{name}." for name, part in artifact.details.get("parts", {}).items() if part.get("accepted")]
    accepted |= {name for name in layers if name.startswith(tuple(stepped))}
    counted = {"num_accepted": len(accepted), "num_left": len(layers) - len(accepted)}
    expect_figures(directory, counted, artifact.details)
    branches = read_adapter(directory) if has_adapter(directory) else {}
    written = accepted.union(*(branch_digests(name, branch) for name, branch in branches.items()))
    if set(read_digests(directory)) != written:
        odd = min(set(read_digests(directory)) ^ written)
        raise VerificationError("the record names other repaired weights than the stage wrote", where=odd)
    # A quantised model has no masks: what is dropped of it is what is 0.
    if read_sparsity(directory) is not None and not (directory / AMAX_FILE).is_file():
        found |= check_masks(directory, artifact)
    if branches:
        check_branches(directory)
    _check_branches_left(branches, artifact)
    if source is None:
        return found
    _same_model(directory, source)
    for name in (SPARSITY_FILE, MASKS_FILE, PLAN_FILE, ROTATION_FILE):
        expect_same_file(name, source, directory)
    with CheckpointReader(source) as original, CheckpointReader(directory) as reader:
        names = [name for name in _same_names(original, reader) if name not in accepted]
        for name in names:
            own = reader.tensor(name)
            expect_bits(name, original.tensor(name).to(own.dtype), own, against="the source's")
    return {**found, "num_tensors_equal_to_source": len(names)}


def _check_branches_left(branches: dict[str, AdapterBranch], artifact: ModelArtifact) -> None:
    """A branch that was not accepted adds nothing, and every branch is accounted for."""
    records = artifact.details.get("branches", {})
    if set(records) != set(branches):
        odd = min(set(records) ^ set(branches))
        raise VerificationError("the record names other low-rank branches than the stage wrote", where=odd)
    for name, branch in branches.items():
        if not records[name].get("accepted") and bool(branch.up.any()):
            raise VerificationError("a low-rank branch that was not accepted is not zero", where=name)


def _trained(directory: Path, artifact: ModelArtifact, source: Path | None, options: VerifyOptions) -> Found:
    found: Found = {**_check_digests(directory, whole_model=True), **_check_probes(directory, options)}
    _check_course(directory, artifact)
    if artifact.stage == "recover":
        found |= check_masks(directory, artifact)
    if source is not None:
        _same_model(directory, source)
        expect_same_file(SPARSITY_FILE, source, directory)
        if artifact.stage == "recover" and (source / MASKS_FILE).is_file():
            found |= check_moved_masks(directory, artifact, source)
    return found


def _quantised(
    directory: Path, artifact: ModelArtifact, source: Path | None, _options: VerifyOptions
) -> Found:
    """Beyond the FP8 checkpoint's numbers, which are checked wherever there is one."""
    unified = directory / FP8_DIRECTORY
    calibration = artifact.inputs.get("config", {}).get("calibration", {})
    counted = {"window_tokens": calibration.get("seq_len"), "num_statistics": len(read_amax(directory))}
    expect_figures(directory, counted, artifact.details)
    if not 0 < artifact.details.get("num_windows", 0) <= calibration.get("size", 0):
        expect_figures(directory, {"num_windows": calibration.get("size")}, artifact.details)
    check_config(unified, directory, without=frozenset({"quantization_config"}))
    check_tokenizer_files(unified, directory)
    if source is None:
        return {}
    _same_model(directory, source)
    expect_same_file(SPARSITY_FILE, source, directory)
    with CheckpointReader(source) as original, CheckpointReader(directory) as reader:
        names = _same_names(original, reader)
        for name in names:
            expect_bits(name, original.tensor(name), reader.tensor(name), against="the student's")
    return {"num_equal_16bit_tensors": len(names)}


def _requantised(
    directory: Path, artifact: ModelArtifact, source: Path | None, options: VerifyOptions
) -> Found:
    """Like a reconstruction, in FP8: repaired weights lie on the grid of maxima that follow the source's."""
    unified = directory / FP8_DIRECTORY
    check_config(unified, directory, without=frozenset({"quantization_config"}))
    check_tokenizer_files(unified, directory)
    accepted, amax = set(read_digests(directory)), read_amax(directory)
    with CheckpointReader(directory) as reader:
        found: Found = {"num_tensors_on_grid": check_on_grid(reader, amax, accepted)}
        if source is not None:
            found |= {"num_maxima": check_maxima(directory, source, accepted)}
            expect_same_file(RECORD_FILE, source / FP8_DIRECTORY, unified)
            sparsity = read_sparsity(source)
            with CheckpointReader(source) as original:
                found |= check_zeros(reader, original, set(sparsity.shapes) if sparsity else set())
    return found | _reconstructed(directory, artifact, source, options)


_CHECKS: dict[str, Callable[[Path, ModelArtifact, Path | None, VerifyOptions], Found]] = {
    "prune": _pruned,
    "prune-masks": _learned,
    "sparsify": _sparsified,
    "reconstruct": _reconstructed,
    "reconstruct-fp8": _requantised,
    "distill": _trained,
    "correct": _trained,
    "recover": _trained,
    "quantize": _quantised,
}
MODEL_STAGES = frozenset(_CHECKS)


def _check_course(directory: Path, artifact: ModelArtifact) -> None:
    """The tokens that a training reports are those of its steps."""
    config, course = artifact.inputs.get("config", {}), artifact.details.get("schedule", {})
    context_length = config.get("distill", config).get("context_length", 0)
    tokens = course.get("max_steps", 0) * course.get("batch_size", 0) * context_length
    expect_figures(directory, {"tokens": tokens}, artifact.details)


def _same_model(directory: Path, source: Path) -> None:
    check_config(directory, source)
    check_tokenizer_files(directory, source)


def _same_names(original: CheckpointReader, reader: CheckpointReader) -> list[str]:
    odd = sorted(set(original) ^ set(reader))
    if odd:
        raise VerificationError(
            "the checkpoint holds other tensors than its source",
            where=odd[0],
            expected="there" if odd[0] in original else "not there",
        )
    return list(original)


def _check_digests(directory: Path, *, whole_model: bool = False) -> Found:
    """Every tensor whose digest was taken from memory, one at a time; of a whole model every one must be."""
    digests = read_digests(directory)
    branches = read_adapter(directory) if has_adapter(directory) else {}
    found: dict[str, str] = {}
    for name, branch in branches.items():
        found |= branch_digests(name, branch)
    with CheckpointReader(directory) as reader:
        names = set(reader) if whole_model else set(digests) & set(reader)
        for name in sorted({*names, *found, *digests}):
            actual = found[name] if name in found else tensor_digest(reader.tensor(name))
            if digests.get(name) != actual:
                raise VerificationError(
                    "a tensor is not the one that the stage held in memory",
                    where=name,
                    expected=digests.get(name, "no such tensor"),
                    found=actual,
                )
    return {"num_tensors_as_in_memory": len(digests)}


def _check_probes(directory: Path, options: VerifyOptions) -> Found:
    """The recorded logits from plain transformers on the files, low-rank branches applied by hand."""
    probes = read_probes(directory)
    if read_config(directory)["vocab_size"] != probes.logits.shape[-1]:
        raise VerificationError("the probes are of another vocabulary", where=str(directory))
    model = load_model(
        directory,
        dtype=probes.compute_dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    if has_adapter(directory):
        for name, branch in read_adapter(directory).items():
            _add_branch_(model.get_submodule(name), branch)
    relative = check_probes(model, probes, where=str(directory))
    return {"probes_max_relative": float(f"{relative:.6g}")}


def _add_branch_(linear: torch.nn.Module, branch: AdapterBranch) -> None:
    """Make a linear layer return W x + B (A x) for as long as its model lives."""
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    down, up = (part.to(device=weight.device, dtype=weight.dtype) for part in (branch.down, branch.up))

    def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (inputs[0] @ down.T) @ up.T

    linear.register_forward_hook(add)
