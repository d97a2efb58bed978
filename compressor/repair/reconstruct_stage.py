"""The reconstruct stage: linear layers solved again by least squares, before any training.

It leaves a checkpoint of the same shape, its masks and the plan of its pruning carried along.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.calibration.rewrite import read_kept, write_rewritten
from compressor.calibration.stream import Stream
from compressor.calibration.text import read_calibration
from compressor.core.errors import UsageError
from compressor.data.calibration import CalibrationWindows
from compressor.data.sources import source_fingerprint
from compressor.data.tokenise import TokenArray
from compressor.models.checkpoint import read_config
from compressor.models.digests import tensor_digest, write_digests
from compressor.models.dims import Dims, dims_of_config
from compressor.models.sparse.low_rank import (
    AdapterBranch,
    adds_groups,
    branch_digests,
    has_adapter,
    read_adapter,
    refuse_adapter,
    write_adapter,
)
from compressor.models.sparse.record import MASKS_FILE, carry_sparsity, read_masks, read_sparsity
from compressor.pruning.plan import PLAN_FILE, PrunePlan, identity_plan, read_plan
from compressor.pruning.rotation import ROTATION_FILE, Rotation, rotation_of
from compressor.recipe.option import content_of, unless_neutral
from compressor.recipe.recipe import Calibration, Section
from compressor.repair.choice import Repaired
from compressor.repair.local_steps import Stepped
from compressor.repair.requirements import require_sequences, require_steps_alone
from compressor.repair.walk import Walk
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh

_SCRATCH = "scratch"


class ReconstructStageConfig(Section):
    """The sections of a recipe that decide this stage."""

    calibration: Calibration
    steps: int = 0


def run(
    config: ReconstructStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Repair `source`, which was made from the context's teacher.

    Raises:
        UsageError: for a model that was not made from this teacher, or too little text.
        VerificationError: when a solution is not finite, naming the weight.
    """
    start_afresh(out_dir)
    assert context.teacher is not None
    models = _pair(context.teacher.path, source.path)
    require_steps_alone(config.steps, has_branches=bool(models.branches))
    windows = read_calibration(config.calibration, source.path, context)
    require_sequences(len(windows.ids))
    scratch = out_dir / _SCRATCH
    scratch.mkdir()
    walk = _walk(models, windows.ids, config.steps, scratch, context)
    digests = {name: tensor_digest(read_kept(path, name)) for name, path in walk.changed.items()}
    for name, branch in walk.branches.items():
        digests |= branch_digests(name, branch)
    write_digests(out_dir, digests)
    write_rewritten(source.path, out_dir, walk.changed, getattr(torch, context.dtype))
    _carry(source.path, out_dir)
    if walk.branches:
        write_adapter(out_dir, walk.branches)
    shutil.rmtree(scratch)
    return StageResult(num_parameters=source.num_parameters, details=details_of(walk, windows))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A model, one that was made from it, and how."""

    original: Path
    compressed: Path
    plan: PrunePlan
    rotation: Rotation | None
    branches: dict[str, AdapterBranch]


def _pair(original: Path, compressed: Path) -> _Pair:
    refuse_adapter(original, by="a teacher")
    branches, plan = _branches(compressed), plan_between(original, compressed)
    rotation = rotation_of(compressed, plan)
    return _Pair(original=original, compressed=compressed, plan=plan, rotation=rotation, branches=branches)


def _walk(models: _Pair, windows: TokenArray, steps: int, scratch: Path, context: StageContext) -> Walk:
    """Both models side by side, to the end."""
    dtype = getattr(torch, context.dtype)
    how: dict[str, Any] = {
        "dtype": dtype,
        "states_dtype": torch.float32,
        "device": context.device,
        "trust_remote_code": context.trust_remote_code,
    }
    with (
        context.console.progress("reconstructing", len(models.plan.layers)) as tick,
        Stream(models.original, windows, scratch / "original.bin", **how) as teacher,
        Stream(models.compressed, windows, scratch / "compressed.bin", **how) as student,
    ):
        walk = Walk(
            original=teacher,
            compressed=student,
            plan=models.plan,
            basis=None if models.rotation is None else models.rotation.kept(models.plan).float(),
            keep_mask=_masks(models.compressed),
            scratch=scratch,
            on_layer=tick,
            branches=models.branches,
            steps=steps,
        )
        walk.run()
    return walk


def _branches(directory: Path) -> dict[str, AdapterBranch]:
    """The low-rank branches that are fitted again: those that no training has changed yet.

    Raises:
        UnsupportedError: for trained ones.
    """
    branches = read_adapter(directory) if has_adapter(directory) else {}
    if not all(adds_groups(branch) for branch in branches.values()):
        refuse_adapter(directory, by="reconstruction")
    return branches


def details_of(walk: Walk, windows: CalibrationWindows) -> dict[str, object]:
    """What the record says of a walk."""
    details: dict[str, object] = {
        "num_accepted": len(walk.changed),
        "num_left": len(walk.layers) - len(walk.changed),
        "outlier_tokens": walk.outlier_tokens,
        "num_windows": len(windows.ids),
        "window_tokens": windows.ids.shape[1],
        "calibration": windows.record,
        "layers": {name: _record(layer) for name, layer in walk.layers.items()},
    }
    if walk.steps:
        details["steps"] = walk.steps
        details["parts"] = {name: _record(part) for name, part in walk.parts.items()}
    if walk.branches:
        details["branches"] = {name: _record(layer) for name, layer in walk.branch_layers.items()}
    return details


def _record(found: Repaired | Stepped) -> dict[str, object]:
    how = {"ridge": found.ridge} if isinstance(found, Repaired) else {"steps": found.steps}
    ratio = None if found.error_ratio is None else float(f"{found.error_ratio:.6g}")
    return {"accepted": found.accepted, **how, "error_ratio": ratio}


def plan_between(original: Path, compressed: Path) -> PrunePlan:
    """Which layers and units of a model stayed: the compressed one's prune plan, or all of them.

    Raises:
        UsageError: when the compressed model was not made from this one.
    """
    teacher, student = (dims_of_config(read_config(path)) for path in (original, compressed))
    file = compressed / PLAN_FILE
    plan = read_plan(file) if file.is_file() else identity_plan(teacher)
    if (plan.source, plan.student) != (teacher, student):
        raise UsageError(
            "this student was not cut from this teacher",
            where=str(compressed),
            expected=f"a directory with the {PLAN_FILE} that says which units of the teacher it keeps, or a "
            "student of the teacher's shape",
            found=_difference(plan, teacher, student),
            hint="give the output of `compress-export prune` or `sparsify`, and its input as --teacher",
        )
    return plan


def _difference(plan: PrunePlan, teacher: Dims, student: Dims) -> str:
    if plan.source != teacher:
        return f"a plan for {plan.source}"
    return f"a student of {student}"


def _masks(directory: Path) -> Callable[[str], torch.Tensor | None]:
    """The mask of every sparse weight, by full name."""
    sparsity = read_sparsity(directory)
    if sparsity is None:
        return lambda _name: None
    return read_masks(directory / MASKS_FILE, sparsity.shapes).get


def _carry(source: Path, out_dir: Path) -> None:
    """What says how the model was compressed stays with it."""
    carry_sparsity(source, out_dir)
    for name in (MASKS_FILE, PLAN_FILE, ROTATION_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, out_dir / name)


RECONSTRUCT: Stage[ReconstructStageConfig] = Stage(
    name="reconstruct",
    run=run,
    content=lambda config: unless_neutral(content_of(config), steps=0),
    libraries=("torch", "transformers", "accelerate"),
    data=lambda config: (config.calibration.data,),
    fingerprint=source_fingerprint,
)
