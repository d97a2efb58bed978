"""What a run writes, stage by stage: what stays, and what is there only while a stage works. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from compressor.choices.formats import FORMATS, STUDENT_FORMAT, Format
from compressor.core.records import Record
from compressor.models.dims import Dims, num_parameters, weight_bytes
from compressor.planning.cuts import INTERLEAVE, PlannedCut
from compressor.recipe.recipe import Recipe

# A GGUF file is converted into a directory whose name is decided when it is read.
CONVERTED = "stages/*-v[0-9]*"
TEACHER_QUANTIZED = "teacher-quantize"  # the teacher with FP8 scales, for the benchmark
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


def stored_bytes(recipe: Recipe, dims: Dims) -> int:
    """Bytes of a checkpoint in the recipe's dtype, by default 16 bits per weight."""
    return weight_bytes(dims, recipe.stored_precision)


def peak_disk_bytes(uses: Iterable[DiskUse]) -> int:
    """The most that these directories hold at one time, made one after the other."""
    peak = kept = 0
    for use in uses:
        kept += use.num_bytes
        peak = max(peak, kept + use.temporary_bytes)
    return peak


def disk_uses(
    recipe: Recipe,
    teacher: Dims,
    student: Dims,
    *,
    converts: bool,
    tried: Iterable[Dims] = (),
    cuts: Sequence[PlannedCut] = (),
) -> tuple[DiskUse, ...]:
    """Everything that a run writes, in the order of its stages; a GGUF teacher `converts` first.

    `tried` are the shapes of a search, of which one at a time is on disk. `cuts` end with the student's.
    """
    stored, original = stored_bytes(recipe, student), stored_bytes(recipe, teacher)
    uses = [DiskUse(stage="prune", where=CONVERTED, num_bytes=original)] if converts else []
    if per_shape := [_trial_bytes(recipe, teacher, shape) for shape in tried]:
        most = max(per_shape)
        uses.append(DiskUse(stage="search", where="stages/search", num_bytes=0, temporary_bytes=most))
    cut_from = teacher
    for cut in cuts[:-1]:
        uses += _cut(recipe, teacher, cut_from, cut)
        cut_from = cut.shape
    temporary = _masks(recipe, teacher) if recipe.mask_tokens() else 0
    pruned = stored + (_rotation(teacher) if recipe.prune.rotates else 0)
    uses.append(DiskUse(stage="prune", where="stages/prune", num_bytes=pruned, temporary_bytes=temporary))
    if recipe.repair.enabled:  # which leaves the rotation beside its plan too
        repair = _repair(recipe, cut_from, student, "reconstruct")
        uses.append(repair.model_copy(update={"num_bytes": pruned}))
    uses += _trainings(recipe, teacher, student)
    if recipe.quantize.fp8:
        both = stored + weight_bytes(student, "fp8")
        uses.append(DiskUse(stage="quantize", where="stages/quantize", num_bytes=both))
        if recipe.repairs_fp8():
            plain = recipe.model_copy(update={"repair": recipe.repair.model_copy(update={"steps": 0})})
            repair = _repair(plain, student, student, "reconstruct-fp8")
            uses.append(repair.model_copy(update={"num_bytes": both}))
    uses.append(DiskUse(stage="export", where="student", num_bytes=stored))
    for name in recipe.export_formats():
        if name != STUDENT_FORMAT:
            copies = 1 + _num_engines(recipe, FORMATS[name])
            size = copies * weight_bytes(student, FORMATS[name].precisions[0])
            uses.append(DiskUse(stage="export", where=f"exports/{name}", num_bytes=size))
    return (*uses, *_teacher_exports(recipe, teacher))


def quantizes_teacher(recipe: Recipe) -> bool:
    """Whether the benchmark measures an FP8 teacher."""
    return any(FORMATS[name].needs_fp8 for name in recipe.measured_formats().values())


def _num_engines(recipe: Recipe, row: Format) -> int:
    """Engines that are built of an export of the student: a 2:4 one may have a dense twin."""
    if not recipe.bench.measures_engines or row.option != recipe.bench.row.engines:
        return 0
    return 2 if recipe.sparsify.pattern and row.has_dense_twin else 1


def _teacher_exports(recipe: Recipe, teacher: Dims) -> Iterator[DiskUse]:
    """What the benchmark makes of the teacher: FP8 scales, and every format that it measures."""
    if quantizes_teacher(recipe):
        both = weight_bytes(teacher, "bf16") + weight_bytes(teacher, "fp8")
        yield DiskUse(stage="bench", where=f"stages/{TEACHER_QUANTIZED}", num_bytes=both)
    for precision, name in recipe.measured_formats().items():
        copies = 2 if recipe.bench.measures_engines else 1
        size = copies * weight_bytes(teacher, precision)
        yield DiskUse(stage="bench", where=f"stages/teacher-{name}", num_bytes=size)


def _cut(recipe: Recipe, teacher: Dims, cut_from: Dims, cut: PlannedCut) -> Iterator[DiskUse]:
    """What one of several cuts, its repair and the training after it write."""
    part_of = {"stage": INTERLEAVE}
    where = f"stages/{cut.name}"
    stored = stored_bytes(recipe, cut.shape)
    yield DiskUse(stage=INTERLEAVE, where=f"{where}-prune", num_bytes=stored)
    if recipe.repair.enabled:
        repair = _repair(recipe, cut_from, cut.shape, "reconstruct")
        yield repair.model_copy(update={**part_of, "where": f"{where}-reconstruct"})
    # All parts of the text are tokenised again each time; sampling and correction are there already.
    for use in _trainings(recipe, teacher, cut.shape):
        if use.stage == "distill":
            yield use.model_copy(update={**part_of, "where": f"{where}-distill"})


def _rotation(teacher: Dims) -> int:
    """The principal components of the hidden states in float32, and their variances in float64."""
    return 4 * teacher.hidden_size**2 + 8 * teacher.hidden_size


def _masks(recipe: Recipe, teacher: Dims) -> int:
    """Training checkpoints and tokens while masks are learned, and the whole model before it is sliced."""
    distill = recipe.distill
    copies = 1 if distill.dynamic_batches.variant == "off" else len(distill.mixture())
    training = _CHECKPOINT_BYTES * num_parameters(teacher) + _TOKEN_BYTES * copies * recipe.mask_tokens()
    return training + stored_bytes(recipe, teacher)


def _trial_bytes(recipe: Recipe, teacher: Dims, shape: Dims) -> int:
    """The pruned checkpoint, and what its repair and its short training write; it all goes afterwards."""
    plain = recipe.sparsify.model_copy(update={"pattern": None})
    short = recipe.model_copy(update={"distill": recipe.search.training(recipe.distill), "sparsify": plain})
    uses = [DiskUse(stage="search", where="", num_bytes=stored_bytes(recipe, shape))]
    if recipe.repair.enabled:
        uses.append(_repair(recipe, teacher, shape, "reconstruct"))
    return peak_disk_bytes([*uses, *_trainings(short, teacher, shape)])


def _repair(recipe: Recipe, original: Dims, student: Dims, stage: str) -> DiskUse:
    """Beside the weights, hidden states of every calibration sequence in both models.

    Gradient steps keep what a part of the student reads and should give as well.
    """
    stored, calibration = stored_bytes(recipe, student), recipe.repair_calibration()
    tokens, copies = calibration.size * calibration.seq_len, 3 if recipe.repair.steps else 1
    states = _STATE_BYTES * tokens * (original.hidden_size + copies * student.hidden_size)
    return DiskUse(stage=stage, where=f"stages/{stage}", num_bytes=stored, temporary_bytes=states + stored)


def _trainings(recipe: Recipe, teacher: Dims, student: Dims) -> Iterator[DiskUse]:
    """Sampling, correction, distillation, sparsification and recovery, as far as they are asked for."""
    distill, stored = recipe.distill, stored_bytes(recipe, student)
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
            num_bytes=stored_bytes(recipe, teacher),
            temporary_bytes=_CHECKPOINT_BYTES * original + _TOKEN_BYTES * tokens,
        )
    if distill.tokens:
        trained = own + (original if distill.correction.mode == "alongside" else 0)
        yield DiskUse(
            stage="distill",
            where="stages/distill",
            num_bytes=stored,
            temporary_bytes=_CHECKPOINT_BYTES * trained + _TOKEN_BYTES * copies * distill.tokens,
        )
    if recipe.sparsify.pattern is None:
        return
    sparse = stored + own // 8  # and one bit per weight for the mask
    yield DiskUse(stage="sparsify", where="stages/sparsify", num_bytes=sparse)
    if recipe.repairs_sparse():
        repair = _repair(recipe, student, student, "reconstruct-sparse")
        yield repair.model_copy(update={"num_bytes": sparse})
    if recovery := recipe.recovery_tokens():
        training = _CHECKPOINT_BYTES * own + _TOKEN_BYTES * copies * recovery
        yield DiskUse(stage="recover", where="stages/recover", num_bytes=sparse, temporary_bytes=training)
