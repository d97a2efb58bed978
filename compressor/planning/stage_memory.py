"""The memory that each stage of a run holds at most on a CPU, from numbers alone. No torch.

All figures are bytes of the resident sets of the process and its children together, as `peak_memory_bytes` of
`manifest.json` records them: 16-bit weights that stay mapped from their file count, hidden states that
calibration keeps in a file do not (the system drops such pages when memory is short). The constants are
measured on Linux with torch for the CPU; `python -m tests.performance.results memory` sets both side by side.

Legend: T tokens of a sequence, H hidden, I intermediate, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compressor.choices.formats import FORMATS, STUDENT_FORMAT
from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.choices.samplers import SAMPLES_PER_BATCH, TRANSFORMERS
from compressor.models.dims import Dims, kv_cache_bytes_per_token, weight_bytes
from compressor.planning.cost import training_phases
from compressor.planning.cuts import INTERLEAVE, PlannedCut
from compressor.planning.schedule import memory_per_gpu
from compressor.recipe.recipe import Generate, Recipe

MIB = 1 << 20
# Python, torch, transformers and what the stages import beside them; a model of kilobytes needs it too.
LIBRARIES = 700 * MIB
# ModelOpt, from the first stage on that imports it.
QUANTIZER = 120 * MIB
# A program that is started beside it, and imports torch again: the builder of ONNX graphs, a converter.
CHILD = 435 * MIB
_FP32, _FP64 = 4, 8
# Of a repair, sums of the sequences to fit, to tune and to check; and the system that is solved.
_REPAIR_SUMS = 4
# Float32 copies of one weight and of its Gram matrix while SparseGPT works on it.
_SPARSE_COPIES = 4
# Positions whose logits an evaluation holds, and copies of them: both models', the logarithms of their
# softmax, the softmax, the difference, and their product.
_EVALUATED_POSITIONS, _EVALUATED_COPIES = 256, 7
# Of a sampled token: float32 logits, their softmax twice, sorted values and 64-bit places, and a mask.
_SAMPLED = 4 * _FP32 + 8 + 1
# Of an export's verification, per token of the vocabulary: both models' float32 logits of a prompt's 256
# positions, and eight float64 tensors of the 16 positions that are compared at once.
_COMPARED = 2 * 256 * _FP32 + 8 * 16 * _FP64


def stage_memory(
    recipe: Recipe,
    teacher: Dims,
    student: Dims,
    cuts: Sequence[PlannedCut] = (),
    tried: Sequence[Dims] = (),
) -> dict[str, int]:
    """Bytes by the last part of a stage's directory: prune, distill, student, onnx-int4 and so on.

    `tried` are the shapes of a search, whose stages are `search` together. Tasks and chat have no
    figure: how long their items and conversations are is not known before they are read.
    """
    dense, shipped = _up_to_16_bit(recipe, teacher, student, cuts), _from_16_bit(recipe, teacher, student)
    if tried:
        dense["search"] = _search(recipe, teacher, tried)
    loaded = LIBRARIES + (QUANTIZER if recipe.quantize.fp8 else 0)
    found = {name: LIBRARIES + size for name, size in dense.items()}
    return found | {name: loaded + size for name, size in shipped.items()}


def _up_to_16_bit(recipe: Recipe, teacher: Dims, student: Dims, cuts: Sequence[PlannedCut]) -> dict[str, int]:
    """The stages that make the 16-bit student, libraries left out."""
    own = {"prune": _prune(recipe, teacher)}
    if recipe.repair.enabled:
        own["reconstruct"] = _repair(teacher, student)
    if recipe.distill.tokens and _samples_here(recipe):
        own["generate"] = _generate(recipe.distill.generate, teacher)
    own |= _trainings(recipe, teacher, student, cuts)
    if recipe.sparsify.pattern is not None:
        own["sparsify"] = weight_bytes(student, "bf16") + _sparsify(student)
    if recipe.repairs_sparse():
        own["reconstruct-sparse"] = _repair(student, student)
    return own


def _from_16_bit(recipe: Recipe, teacher: Dims, student: Dims) -> dict[str, int]:
    """The stages from quantization on; it holds the mapped weights and those that it changes."""
    own = {"quantize": 2 * weight_bytes(student, "bf16")} if recipe.quantize.fp8 else {}
    if recipe.repairs_fp8():
        own["reconstruct-fp8"] = _repair(student, student)
    for name in dict.fromkeys((STUDENT_FORMAT, *recipe.export_formats())):
        own["student" if name == STUDENT_FORMAT else name] = _export(name, student)
    own["evaluate"] = _evaluate(recipe, teacher, student)
    if executed := recipe.executed_formats():
        graphs = [_execute(recipe, FORMATS[name].precisions[0], student) for name in executed]
        own["evaluate-exports"] = max(_evaluate(recipe, student), *graphs)
    if formats := recipe.measured_formats():
        exports = max(_export(name, teacher) for name in formats.values())
        own["bench"] = max(exports, 2 * weight_bytes(teacher, "fp32"))
    return own


def _prune(recipe: Recipe, teacher: Dims) -> int:
    """Taylor scores: float32 weights and gradients. Others: the mapped weights, and one sequence's states.

    The states of one sequence are kept of every layer, in 16 bits and widened.
    """
    weights = weight_bytes(teacher, "bf16")
    method = IMPORTANCE_METHODS[recipe.prune.importance]
    if method.needs_gradients:
        return 2 * weight_bytes(teacher, "fp32")
    if not method.needs_text:
        return weights
    states = (teacher.num_hidden_layers + 1) * recipe.calibration.seq_len * teacher.hidden_size
    return weights + (2 + _FP32) * states


def _repair(original: Dims, student: Dims) -> int:
    """Both models mapped, and the float64 sums of the linear layers with one input that need most.

    With i inputs and o outputs, i^2 + i o numbers: of gate and up i = H, o = 2 I; of down i = I, o = H.
    """
    hidden, intermediate = student.hidden_size, student.intermediate_size
    sums = max(
        hidden**2 + 2 * hidden * intermediate,
        intermediate**2 + intermediate * hidden,
    )
    mapped = weight_bytes(original, "bf16") + weight_bytes(student, "bf16")
    return mapped + _REPAIR_SUMS * _FP64 * sums


def _sparsify(student: Dims) -> int:
    """Of the layer in work: its down projection and the Gram matrix of its input, in float32."""
    hidden, intermediate = student.hidden_size, student.intermediate_size
    return _SPARSE_COPIES * _FP32 * (intermediate**2 + intermediate * hidden)


def _samples_here(recipe: Recipe) -> bool:
    """Whether text is sampled, and not by a server: that is a program of its own, mostly on a GPU."""
    generate = recipe.distill.generate
    return bool(generate.tokens) and generate.settled().sampler == TRANSFORMERS


def _generate(generate: Generate, teacher: Dims) -> int:
    """The mapped weights, the keys and values of a batch of whole samples, and its next logits.

    From the logits follow probabilities, which are sorted for top-p: `_SAMPLED` bytes per token of the
    vocabulary.
    """
    length = 1 + (generate.prompt_tokens if generate.prompts else 0) + generate.max_new_tokens
    cached = SAMPLES_PER_BATCH * length * kv_cache_bytes_per_token(teacher)
    return weight_bytes(teacher, "bf16") + cached + SAMPLES_PER_BATCH * teacher.vocab_size * _SAMPLED


def _search(recipe: Recipe, teacher: Dims, tried: Sequence[Dims]) -> int:
    """Importance once; of every shape a repair, a short training and an evaluation, one after the other."""
    own = recipe.model_copy(update={"distill": recipe.search.training(recipe.distill)})
    parts = [_prune(recipe, teacher), _evaluate(recipe, teacher)]
    for shape in tried:
        parts += _trainings(own, teacher, shape, ()).values()
        parts += [_repair(teacher, shape)] if recipe.repair.enabled else []
    return max(parts)


def _trainings(recipe: Recipe, teacher: Dims, student: Dims, cuts: Sequence[PlannedCut]) -> dict[str, int]:
    """All that `memory_per_gpu` counts, in one process: a CPU's memory holds the same tensors."""
    between, found = {f"{cut.name}-distill" for cut in cuts}, dict[str, int]()
    for phase in training_phases(recipe, teacher, student, 1, cuts=cuts):
        stage = INTERLEAVE if phase.name in between else phase.name
        needed = memory_per_gpu(phase, 1, recomputes=phase.recomputes)["total"]
        found[stage] = max(found.get(stage, 0), needed)
    return found


def _export(name: str, model: Dims) -> int:
    """Of a format: the model in float32, what was written, as it is executed, and the logits of both.

    The 16-bit checkpoint is compared bit by bit, both mapped; so are a TensorRT-LLM checkpoint's weights, and
    both files stay mapped. A graph is built by a program of its own, which holds the 16-bit weights and those
    of the graph; afterwards ONNX Runtime holds the graph's weights, and those of a standard graph in 16 bits
    or FP8 widened as well.
    """
    if name == STUDENT_FORMAT:
        return 2 * weight_bytes(model, "bf16")
    whole, stored = weight_bytes(model, "fp32"), weight_bytes(model, "bf16")
    compared = 2 * whole + _COMPARED * model.vocab_size
    made: dict[str, Callable[[], int]] = {
        "tensorrt-llm": lambda: 2 * stored + compared,
        "onnx": lambda: CHILD + stored + 2 * whole,
        "tensorrt-edge-llm": lambda: CHILD + stored + 2 * whole,
        "onnx-standard": lambda: 3 * whole + _COMPARED * model.vocab_size,
    }
    make = made.get(FORMATS[name].option)
    return max(compared, make() if make else 0)


def _evaluate(recipe: Recipe, first: Dims, *others: Dims) -> int:
    """The first model mapped, whose head the others are compared with, and the largest of them.

    And the logits of some positions, V each, in float32.
    """
    other = max((weight_bytes(model, "bf16") for model in others), default=0)
    return weight_bytes(first, "bf16") + other + _compared_logits(recipe, first)


def _execute(recipe: Recipe, precision: str, model: Dims) -> int:
    """A graph's weights, 16-bit ones widened, stored and in the kernels' order; the logits of a sequence."""
    stored = weight_bytes(model, precision if precision in ("int4", "fp8") else "fp32")
    sequence = _FP32 * recipe.evaluate.seq_len * model.vocab_size
    return 2 * stored + sequence + _compared_logits(recipe, model)


def _compared_logits(recipe: Recipe, model: Dims) -> int:
    positions = min(_EVALUATED_POSITIONS, recipe.evaluate.seq_len)
    return _EVALUATED_COPIES * _FP32 * positions * model.vocab_size
