"""How a stage is made again: by a command that there is."""

from __future__ import annotations

from pathlib import Path

from bench.bench_stage import BENCH
from compressor.choices.formats import FORMATS
from compressor.cli.main import COMMANDS, PROGRAM
from compressor.distillation.correct_stage import CORRECT
from compressor.distillation.distill_stage import DISTILL, DISTILL_PART
from compressor.distillation.generate_stage import GENERATE
from compressor.distillation.logits_stage import LOGITS
from compressor.evaluation.evaluate_stage import EVALUATE
from compressor.evaluation.task_stage import TASKS
from compressor.masks.learn_stage import LEARN
from compressor.pruning.prune_stage import PRUNE
from compressor.quantization.fp8 import QUANTIZE
from compressor.repair.quantised_stage import RECONSTRUCT_FP8
from compressor.repair.reconstruct_stage import RECONSTRUCT
from compressor.runs.redo import redo_by_command
from compressor.search.stages import COMPARE, MEASURE, TRIAL
from compressor.sparsity.sparse_finetune import RECOVER
from compressor.sparsity.sparsify_stage import SPARSIFY
from exporters.export_stage import export_stage


def test_what_is_made_again_by_its_own_command_names_one_that_there_is() -> None:
    """Every stage that the code declares; what no option names is made again once it is deleted."""
    declared = [
        *(GENERATE, CORRECT, LOGITS, DISTILL, DISTILL_PART, EVALUATE, TASKS, PRUNE, RECOVER, SPARSIFY),
        *(MEASURE, TRIAL, COMPARE, QUANTIZE, RECONSTRUCT, RECONSTRUCT_FP8, LEARN, BENCH),
        *(export_stage(name) for name in FORMATS),
    ]
    path = Path("out/directory")
    for stage in declared:
        words = redo_by_command(stage.name, path).split()
        if stage in (MEASURE, TRIAL):
            assert words[:2] == ["delete", f"{path},"]
        else:
            assert words[0] == PROGRAM
            assert words[1] in COMMANDS
            assert words[-3:] == ["-o", str(path), "--overwrite"]
