"""What a run writes, stage by stage: what stays, and what is there only while a stage works. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from compressor.choices.formats import FORMATS, STUDENT_FORMAT
from compressor.core.records import Record
from compressor.models.dims import Dims, num_parameters, weight_bytes
from compressor.recipe.recipe import Recipe

# A GGUF file is converted into a directory whose name is decided when it is read.
CONVERTED = "stages/*-v[0-9]*"
# Float32 weights and AdamW's two moments, of two checkpoints: the older goes when the newer is complete.
_CHECKPOINT_BYTES = 2 * 12
_TOKEN_BYTES = 4
_STATE_BYTES = 4


class DiskUse(Record):
    """One directory of a run.

    Attributes:
        stage: The stage that writes it, as `--restart-from` calls it.
        where: The directory, relative to the run's; a pattern where its name is not known before.
        num_bytes: What stays.
        temporary_bytes: What is there in addition while the stage works.
    """

    stage: str
    where: str
    num_bytes: int
    temporary_bytes: int = 0


def teacher_graphs(recipe: Recipe) -> dict[str, str]:
    """The formats that the benchmark writes the teacher in, by precision, beside the student's export."""
    formats = recipe.export_formats()
    return {own: name for own, name in recipe.bench.read_formats().items() if name in formats}


def peak_disk_bytes(uses: Iterable[DiskUse]) -> int:
    """The most that these directories hold at one time, made one after the other."""
    peak = kept = 0
    for use in uses:
        kept += use.num_bytes
        peak = max(peak, kept + use.temporary_bytes)
    return peak


def disk_uses(
    recipe: Recipe, teacher: Dims, student: Dims, *, converts: bool, tried: Iterable[Dims] = ()
) -> tuple[DiskUse, ...]:
    """Everything that a run writes, in the order of its stages; a GGUF teacher `converts` first.

    `tried` are the shapes of a search, of which one at a time is on disk.
    """
    sixteen, original = weight_bytes(student, "bf16"), weight_bytes(teacher, "bf16")
    uses = [DiskUse(stage="prune", where=CONVERTED, num_bytes=original)] if converts else []
    if per_shape := [_trial_bytes(recipe, teacher, shape) for shape in tried]:
        most = max(per_shape)
        uses.append(DiskUse(stage="search", where="stages/search", num_bytes=0, temporary_bytes=most))
    temporary = _masks(recipe, teacher) if recipe.mask_tokens() else 0
    uses.append(DiskUse(stage="prune", where="stages/prune", num_bytes=sixteen, temporary_bytes=temporary))
    if recipe.repair.enabled:
        uses.append(_repair(recipe, teacher, student, "reconstruct"))
    uses += _trainings(recipe, teacher, student)
    if recipe.quantize.fp8:
        both = sixteen + weight_bytes(student, "fp8")
        uses.append(DiskUse(stage="quantize", where="stages/quantize", num_bytes=both))
    uses.append(DiskUse(stage="export", where="student", num_bytes=sixteen))
    for name in recipe.export_formats():
        if name != STUDENT_FORMAT:
            size = weight_bytes(student, FORMATS[name].precisions[0])
            uses.append(DiskUse(stage="export", where=f"exports/{name}", num_bytes=size))
    for precision, name in teacher_graphs(recipe).items():
        size = weight_bytes(teacher, precision)
        uses.append(DiskUse(stage="bench", where=f"stages/teacher-{name}", num_bytes=size))
    return tuple(uses)


def _masks(recipe: Recipe, teacher: Dims) -> int:
    """Training checkpoints and tokens while masks are learned, and the whole model before it is sliced."""
    distill = recipe.distill
    copies = 1 if distill.dynamic_batches.variant == "off" else len(distill.mixture())
    training = _CHECKPOINT_BYTES * num_parameters(teacher) + _TOKEN_BYTES * copies * recipe.mask_tokens()
    return training + weight_bytes(teacher, "bf16")


def _trial_bytes(recipe: Recipe, teacher: Dims, shape: Dims) -> int:
    """The pruned checkpoint, and what its repair and its short training write; it all goes afterwards."""
    plain = recipe.sparsify.model_copy(update={"pattern": None})
    short = recipe.model_copy(update={"distill": recipe.search.training(recipe.distill), "sparsify": plain})
    uses = [DiskUse(stage="search", where="", num_bytes=weight_bytes(shape, "bf16"))]
    if recipe.repair.enabled:
        uses.append(_repair(recipe, teacher, shape, "reconstruct"))
    return peak_disk_bytes([*uses, *_trainings(short, teacher, shape)])


def _repair(recipe: Recipe, original: Dims, student: Dims, stage: str) -> DiskUse:
    """Beside the weights, hidden states of every calibration sequence in both models.

    Gradient steps keep what a part of the student reads and should give as well.
    """
    sixteen, calibration = weight_bytes(student, "bf16"), recipe.repair_calibration()
    tokens, copies = calibration.size * calibration.seq_len, 3 if recipe.repair.steps else 1
    states = _STATE_BYTES * tokens * (original.hidden_size + copies * student.hidden_size)
    return DiskUse(stage=stage, where=f"stages/{stage}", num_bytes=sixteen, temporary_bytes=states + sixteen)


def _trainings(recipe: Recipe, teacher: Dims, student: Dims) -> Iterator[DiskUse]:
    """Sampling, correction, distillation, sparsification and recovery, as far as they are asked for."""
    distill, sixteen = recipe.distill, weight_bytes(student, "bf16")
    own, original = num_parameters(student), num_parameters(teacher)
    generated = distill.generate.tokens if distill.tokens else 0
    if generated:
        yield DiskUse(stage="generate", where="stages/generate", num_bytes=_TOKEN_BYTES * generated)
    # Any domain may turn out to be the one that dynamic batches draw from.
    num_domains = len(distill.mixture()) + (generated > 0)
    copies = 1 if distill.dynamic_batches.variant == "off" else num_domains
    if distill.tokens and distill.correction.mode == "first":
        tokens = distill.correction.tokens or distill.tokens
        yield DiskUse(
            stage="correct",
            where="stages/correct",
            num_bytes=weight_bytes(teacher, "bf16"),
            temporary_bytes=_CHECKPOINT_BYTES * original + _TOKEN_BYTES * tokens,
        )
    if distill.tokens:
        trained = own + (original if distill.correction.mode == "alongside" else 0)
        yield DiskUse(
            stage="distill",
            where="stages/distill",
            num_bytes=sixteen,
            temporary_bytes=_CHECKPOINT_BYTES * trained + _TOKEN_BYTES * copies * distill.tokens,
        )
    if recipe.sparsify.pattern is None:
        return
    sparse = sixteen + sixteen // 16  # and one bit per weight for the mask
    yield DiskUse(stage="sparsify", where="stages/sparsify", num_bytes=sparse)
    if recipe.repairs_sparse():
        repair = _repair(recipe, student, student, "reconstruct-sparse")
        yield repair.model_copy(update={"num_bytes": sparse})
    if recovery := recipe.recovery_tokens():
        training = _CHECKPOINT_BYTES * own + _TOKEN_BYTES * copies * recovery
        yield DiskUse(stage="recover", where="stages/recover", num_bytes=sparse, temporary_bytes=training)
