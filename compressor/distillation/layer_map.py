"""Which teacher layer teaches which student layer, and when states are compared at all.

Minitron (arXiv 2407.14679, section 2.4 and table 17): losses on hidden states help only after large
depth cuts, and there the layer two before the last of each does best (29 of 0-31 with 13 of 0-15),
beside the embeddings, by cosine.
"""

from __future__ import annotations

from compressor.core.errors import UsageError

LAYERS_BEFORE_LAST = 2
# "Large": Minitron's depth-pruned models lost half of the layers, its width-pruned at most a tenth.
LARGE_DEPTH_CUT = (1, 3)


def default_pair(num_teacher_layers: int, num_student_layers: int) -> tuple[int, int]:
    """(teacher, student) layer two before the last of each, from 0; the first where there are fewer."""
    return (
        max(0, num_teacher_layers - 1 - LAYERS_BEFORE_LAST),
        max(0, num_student_layers - 1 - LAYERS_BEFORE_LAST),
    )


def check_pairs(
    pairs: tuple[tuple[int, int], ...], num_teacher_layers: int, num_student_layers: int
) -> tuple[tuple[int, int], ...]:
    """The pairs, if every one names layers that exist.

    Raises:
        UsageError: for no pair at all, or a layer out of range.
    """
    if not pairs:
        raise UsageError(
            "a loss on hidden states needs layers to compare",
            where="distill.layer_pairs",
            hint="name at least one TEACHER:STUDENT pair, or leave it out for the default pair",
        )
    for teacher_layer, student_layer in pairs:
        for owner, index, num_layers in (
            ("teacher", teacher_layer, num_teacher_layers),
            ("student", student_layer, num_student_layers),
        ):
            if not 0 <= index < num_layers:
                raise UsageError(
                    f"the {owner} has no such layer",
                    where=f"distill.layer_pairs, pair {teacher_layer}:{student_layer}",
                    expected=f"0 to {num_layers - 1}",
                    found=index,
                    hint="layers count from 0; a pair is TEACHER:STUDENT",
                )
    return pairs


def is_large_depth_cut(num_teacher_layers: int, num_student_layers: int) -> bool:
    """Whether at least a third of the layers was cut."""
    numerator, denominator = LARGE_DEPTH_CUT
    return denominator * (num_teacher_layers - num_student_layers) >= numerator * num_teacher_layers
