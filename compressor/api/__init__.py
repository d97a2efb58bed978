"""The library: one function per stage and one for the whole run; the commands use nothing else.

Functions take sections of the recipe and paths, return what was recorded, and raise the errors of
`compressor.core.errors`. Nothing is printed: messages go to the logger `compressor`.
"""

from compressor.api.arms import Selection, select
from compressor.api.execution import Execution
from compressor.api.measuring import bench, evaluate, evaluate_tasks, export, verify
from compressor.api.search import SearchShare, search
from compressor.api.stages import (
    cache_logits,
    correct_teacher,
    distill,
    generate,
    learn_masks,
    prune,
    quantize,
    reconstruct,
    sparsify,
)
from compressor.api.whole import plan, run, settle
from compressor.planning.plan import Plan

__all__ = [
    "Execution",
    "Plan",
    "SearchShare",
    "Selection",
    "bench",
    "cache_logits",
    "correct_teacher",
    "distill",
    "evaluate",
    "evaluate_tasks",
    "export",
    "generate",
    "learn_masks",
    "plan",
    "prune",
    "quantize",
    "reconstruct",
    "run",
    "search",
    "select",
    "settle",
    "sparsify",
    "verify",
]
