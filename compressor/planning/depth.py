"""What is measured of a model whose layers are removed one block at a time, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from compressor.core.errors import UsageError
from compressor.data.depth_task import require_task
from compressor.models.dims import Dims
from compressor.models.presets import preset_of_dims
from compressor.recipe.compression import Prune

# Blocks of these many layers are measured of a model of 32 layers; of fewer layers, in proportion.
SIZES, OF_LAYERS = (1, 2, 8, 16), 32
_ONLY_MEASURED = ("depth_task", "depth_size", "depth_curve")


def removal(prune: Prune, source: Dims, student: Dims) -> Literal["contiguous", "scattered"]:
    """Whether the removed layers are neighbours.

    By default scattered ones go (ShortGPT, arXiv 2403.03853), which a repair makes up for best; but where
    half of the layers go, scattered ones cost a task's accuracy that a block does not (arXiv 2408.11796).
    """
    if prune.depth != "auto":
        return prune.depth
    num_removed = source.num_hidden_layers - student.num_hidden_layers
    return "contiguous" if 2 * num_removed >= source.num_hidden_layers else "scattered"


def published_layers(prune: Prune, source: Dims, student: Dims) -> tuple[int, ...]:
    """The layers that the publication of this student removed from this source.

    None where it names none, or where the recipe says how layers are chosen.
    """
    if prune.measures_depth or prune.depth == "scattered":
        return ()
    known, made = preset_of_dims(source), preset_of_dims(student)
    return made.removed_layers if known and made and made.alias in known.targets.values() else ()


def of_cut(prune: Prune, source: Dims, student: Dims) -> Prune:
    """Without the choices about removed layers where a cut, one of several, removes none."""
    if student.num_hidden_layers < source.num_hidden_layers:
        return prune
    neutral = Prune()
    return prune.model_copy(
        update={name: getattr(neutral, name) for name in ("depth_importance", *_ONLY_MEASURED)}
    )


def curve_sizes(prune: Prune, num_layers: int) -> tuple[int, ...]:
    """Sizes of the blocks whose removal is measured at every position, ascending."""
    if prune.depth_curve is not None:
        return tuple(sorted(set(prune.depth_curve)))
    scale = min(1.0, num_layers / OF_LAYERS)
    return tuple(sorted({max(1, round(size * scale)) for size in SIZES}))


def num_block_passes(num_layers: int, size: int) -> int:
    """Layers that run to measure every block of `size` layers: those behind each of them."""
    behind = num_layers - size
    return behind * (behind + 1) // 2


def depth_passes(prune: Prune, source: Dims, student: Dims) -> float:
    """Forward passes of the source over the measured text that choosing the removed layers costs."""
    if not prune.measures_depth:
        return 0.0
    num_layers = source.num_hidden_layers
    num_removed = num_layers - student.num_hidden_layers
    sizes = set(curve_sizes(prune, num_layers))
    layers = num_layers
    if removal(prune, source, student) == "contiguous":
        sizes.add(num_removed)
    else:
        layers += sum(
            kept + num_block_passes(kept, 1) for kept in range(student.num_hidden_layers + 1, num_layers)
        )
        sizes.add(1)
    return (layers + sum(num_block_passes(num_layers, size) for size in sizes)) / num_layers


def require_removal(prune: Prune, source: Dims, students: Iterable[Dims]) -> None:
    """Refuse a choice of how layers are removed where every student keeps all of them.

    Raises:
        UsageError: for the choice.
    """
    if prune.depth != "auto" and all(one.num_hidden_layers >= source.num_hidden_layers for one in students):
        raise UsageError(
            "the student keeps every layer, so how layers are removed has no effect",
            where="--depth-removal",
            found=prune.depth,
            hint="leave it out, or remove layers by --shape num_hidden_layers=N in place of --target",
        )


def require_depth(prune: Prune, source: Dims, student: Dims) -> None:
    """Refuse, before any work, choices about the removed layers that contradict each other.

    Raises:
        UsageError: naming them, or the line of a task's file that is no question.
        DependencyError: for a task of lm-eval without it.
    """
    if not prune.measures_depth:
        unused = [name for name in _ONLY_MEASURED if getattr(prune, name) != getattr(Prune(), name)]
        if unused:
            raise UsageError(
                "nothing is measured without layers, so these choices have no effect",
                where=", ".join(f"prune.{name}" for name in unused),
                hint="leave them out, or add --depth-importance loss or task",
            )
        return
    if student.num_hidden_layers == source.num_hidden_layers:
        raise UsageError(
            "the student keeps every layer, so how removed ones are chosen has no effect",
            where="--depth-importance",
            found=prune.depth_importance,
            hint="leave it out, or remove layers by --shape num_hidden_layers=N in place of --target",
        )
    if (prune.depth_importance == "task") != (prune.depth_task is not None):
        raise UsageError(
            "removals are measured by a task, such as a file of questions, or by the loss alone",
            where="--depth-importance, --depth-task",
            hint="give both --depth-importance task and --depth-task TASK, or neither",
        )
    largest = max(curve_sizes(prune, source.num_hidden_layers))
    if largest >= source.num_hidden_layers:
        raise UsageError(
            "a block of layers is as large as the model",
            where="--depth-curve",
            expected=f"at most {source.num_hidden_layers - 1}",
            found=largest,
            hint="name smaller blocks",
        )
    if prune.depth_task is not None:
        require_task(prune.depth_task)
