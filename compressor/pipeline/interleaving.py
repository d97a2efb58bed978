"""Several cuts with training between them: all but the last, which a run makes like its only one.

Each cut is made from the model that the training before it left, and is repaired beside that model; every
training is taught by the run's own teacher and goes on in the text where the one before it ended.
"""

from __future__ import annotations

from compressor.distillation.distill_stage import DISTILL_PART, DistillPartConfig
from compressor.pipeline.running import Run
from compressor.pipeline.searching import pruning
from compressor.pipeline.teaching import correct, generate, teaching
from compressor.planning.cuts import INTERLEAVE, PlannedCut
from compressor.pruning.prune_stage import PRUNE
from compressor.repair.reconstruct_stage import RECONSTRUCT, ReconstructStageConfig
from compressor.runs.artifact import ModelArtifact


def interleave(run: Run) -> None:
    """Cut, repair and train for every cut but the last; nothing for a run of one cut."""
    if not run.plan.cuts:
        return
    generate(run)
    correct(run)
    for number, cut in enumerate(run.plan.cuts[:-1], start=1):
        _cut(run, number, cut)


def _cut(run: Run, number: int, cut: PlannedCut) -> None:
    source, where = cut_from(run), f"stages/{cut.name}"
    config, others = pruning(run, cut.shape, source)
    made = run.execute(
        PRUNE,
        config,
        source,
        INTERLEAVE,
        makes=f"{cut.name} pruned",
        where=f"{where}-prune",
        others=others,
    )
    if number == 1:
        run.record_first()
    if run.recipe.repair.enabled:
        made = run.execute(
            RECONSTRUCT,
            repair_config(run),
            made,
            INTERLEAVE,
            makes=f"{cut.name} reconstructed",
            where=f"{where}-reconstruct",
            teacher=source,
        )
    run.execute(
        DISTILL_PART,
        part_config(run, number),
        made,
        INTERLEAVE,
        makes=cut.name,
        where=f"{where}-distill",
        others=teaching(run),
    )


def cut_from(run: Run) -> ModelArtifact:
    """What the next cut is made from: what the training after the last one left, at first the teacher."""
    return [run.teacher, *(run.made[cut.name] for cut in run.plan.cuts if cut.name in run.made)][-1]


def part_config(run: Run, number: int) -> DistillPartConfig:
    """The training after the cut of this number, the first being 1."""
    return DistillPartConfig(distill=run.recipe.distill, interleave=run.recipe.interleave, part=number)


def repair_config(run: Run) -> ReconstructStageConfig:
    """How the run repairs."""
    return ReconstructStageConfig(calibration=run.recipe.repair_calibration(), steps=run.recipe.repair.steps)
