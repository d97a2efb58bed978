"""What a run's trainings read beside their student: samples of the teacher, its correction, stored logits."""

from __future__ import annotations

from pathlib import Path

from compressor.distillation.correct_stage import CORRECT
from compressor.distillation.distill_stage import GENERATED, STORED_LOGITS
from compressor.distillation.generate_stage import GENERATE
from compressor.pipeline.running import CORRECTED, Run
from compressor.runs.artifact import ModelArtifact, read_artifact


def generate(run: Run) -> None:
    """Sample text from the teacher, where the recipe asks for it and it was not done before the first cut."""
    distill = run.recipe.distill
    if distill.generate.tokens and distill.tokens and GENERATED not in run.made:
        run.execute(GENERATE, distill.generate, run.teacher, "generate", makes=GENERATED)


def correct(run: Run) -> None:
    """Correct the teacher, where the recipe asks for it and it was not done before the first cut."""
    distill = run.recipe.distill
    if distill.correction.mode == "first" and distill.tokens and CORRECTED not in run.made:
        run.execute(CORRECT, distill, run.teacher, "correct", makes=CORRECTED)


def teaching(run: Run) -> dict[str, ModelArtifact]:
    """What training reads beside student and teacher."""
    others = {GENERATED: run.made[GENERATED]} if GENERATED in run.made else {}
    stored = run.recipe.distill.teacher_logits
    return others | ({STORED_LOGITS: read_artifact(Path(stored))} if stored else {})
