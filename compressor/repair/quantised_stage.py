"""The reconstruct stage of a quantised model: FP8 weights solved again, and rounded with the error in view.

It reads a directory of `quantize` and leaves one of the same form: 16-bit weights, which of repaired layers
are values of the FP8 grid, all maxima, and the FP8 checkpoint. Wanted are the outputs of the model that was
quantised, or of another one of its shape, such as the dense one that a 2:4 model was made from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compressor.calibration.rewrite import read_kept, write_rewritten
from compressor.calibration.stream import Stream
from compressor.calibration.text import read_calibration
from compressor.core.errors import UsageError
from compressor.data.sources import source_fingerprint
from compressor.data.tokenise import TokenArray
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.digests import tensor_digest, write_digests
from compressor.models.dims import dims_of_config
from compressor.models.sparse.low_rank import refuse_adapter
from compressor.models.sparse.record import carry_sparsity, read_sparsity
from compressor.models.tokenizer import load_tokenizer
from compressor.pruning.plan import identity_plan
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, read_amax, write_amax
from compressor.quantization.coverage import K_SCALE
from compressor.quantization.unified import rewrite_unified
from compressor.recipe.recipe import Calibration, Section
from compressor.repair.quantised_walk import QuantisedWalk
from compressor.repair.reconstruct_stage import details_of
from compressor.repair.requirements import require_sequences
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh

_SCRATCH = "scratch"
_NAME, _QUANTIZED_BY = "reconstruct-fp8", "quantize"


class ReconstructFp8StageConfig(Section):
    """The sections of a recipe that decide this stage."""

    calibration: Calibration


def is_quantised(directory: Path) -> bool:
    """Whether a directory was left by `quantize`, or by a repair after it."""
    return (directory / AMAX_FILE).is_file()


def run(
    config: ReconstructFp8StageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Repair the FP8 weights of `source` beside the context's teacher.

    Raises:
        UsageError: for a teacher of another shape or vocabulary, a model that was repaired like this already,
            or too little text.
        VerificationError: when an activation is not finite, naming where.
    """
    start_afresh(out_dir)
    assert context.teacher is not None
    _require_pair(source, context.teacher, context)
    windows = read_calibration(config.calibration, source.path, context)
    require_sequences(len(windows.ids))
    scratch = out_dir / _SCRATCH
    scratch.mkdir()
    walk = _walk(context.teacher.path, source.path, windows.ids, scratch, context)
    write_digests(
        out_dir, {name: tensor_digest(read_kept(path, name)) for name, path in walk.changed.items()}
    )
    write_rewritten(source.path, out_dir, walk.changed, None)
    write_amax(out_dir, walk.amax)
    rewrite_unified(
        source.path / FP8_DIRECTORY,
        out_dir / FP8_DIRECTORY,
        read_config(source.path),
        changed=walk.changed,
        amax=walk.amax,
    )
    carry_sparsity(source.path, out_dir)
    shutil.rmtree(scratch)
    return StageResult(num_parameters=source.num_parameters, details=details_of(walk, windows))


RECONSTRUCT_FP8: Stage[ReconstructFp8StageConfig] = Stage(
    name=_NAME,
    run=run,
    libraries=("torch", "transformers", "accelerate"),
    data=lambda config: (config.calibration.data,),
    fingerprint=source_fingerprint,
)


def _require_pair(source: ModelArtifact, teacher: ModelArtifact, context: StageContext) -> None:
    """Refuse what cannot be repaired, and a teacher that does not show what is wanted."""
    if _NAME in source.lineage:
        raise UsageError(
            "this model was repaired after it was quantised already",
            where=str(source.path),
            found=" -> ".join(source.lineage),
            hint="give the output of `compress-export quantize`",
        )
    if source.stage != _QUANTIZED_BY:
        raise UsageError(
            "this directory holds maxima for FP8, and no record of how they were made",
            where=str(source.path),
            expected=f"{ARTIFACT_FILE} of the stage {_QUANTIZED_BY}",
            found=source.stage,
            hint="give the directory that `compress-export quantize` wrote, as it wrote it",
        )
    if _NAME in teacher.lineage:
        raise UsageError(
            "this teacher's own weights are rounded to FP8",
            where=str(teacher.path),
            found=" -> ".join(teacher.lineage),
            hint="give the 16-bit model that was quantised as --teacher",
        )
    refuse_adapter(teacher.path, by="a teacher")
    expected, found = (dims_of_config(read_config(one.path)) for one in (source, teacher))
    if expected != found:
        raise UsageError(
            "this teacher has another shape than the quantised model",
            where=str(teacher.path),
            expected=str(expected),
            found=str(found),
            hint="give the 16-bit model that was quantised as --teacher",
        )
    own, theirs = (
        load_tokenizer(one.path, trust_remote_code=context.trust_remote_code).get_vocab()
        for one in (source, teacher)
    )
    if own != theirs:
        raise UsageError(
            "this teacher has another vocabulary than the quantised model",
            where=str(teacher.path),
            expected=f"{len(own):,} tokens, the same ones",
            found=f"{len(theirs):,} tokens",
            hint="give the 16-bit model that was quantised as --teacher",
        )


def _walk(
    teacher: Path, student: Path, windows: TokenArray, scratch: Path, context: StageContext
) -> QuantisedWalk:
    """Both models side by side, to the end."""
    plan = identity_plan(dims_of_config(read_config(teacher)))
    with CheckpointReader(student) as weights, CheckpointReader(student / FP8_DIRECTORY) as rounded:
        stored = weights.tensor(f"{plan.source.linear_names()[0]}.weight").dtype
        how: dict[str, Any] = {
            # Wide enough for the weights, so that rounding them once gives what is stored.
            "dtype": torch.promote_types(stored, getattr(torch, context.dtype)),
            "states_dtype": torch.float32,
            "device": context.device,
            "trust_remote_code": context.trust_remote_code,
        }
        with (
            context.console.progress("reconstructing", len(plan.layers)) as tick,
            Stream(teacher, windows, scratch / "original.bin", **how) as original,
            Stream(student, windows, scratch / "compressed.bin", **how) as compressed,
        ):
            walk = QuantisedWalk(
                original=original,
                compressed=compressed,
                plan=plan,
                keep_mask=_zeros_of(student, weights),
                scratch=scratch,
                on_layer=tick,
                amax=read_amax(student),
                rounds_cache=any(name.endswith(K_SCALE) for name in rounded),
                stored_dtype=stored,
            )
            walk.run()
    return walk


def _zeros_of(directory: Path, reader: CheckpointReader) -> Callable[[str], torch.Tensor | None]:
    """The weights of a sparse tensor that exist: those that are not 0; None for a dense one."""
    sparsity = read_sparsity(directory)
    shapes = {} if sparsity is None else sparsity.shapes
    return lambda name: reader.tensor(name) != 0 if name in shapes else None
