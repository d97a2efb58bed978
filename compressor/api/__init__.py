"""The library: one function per stage and one for the whole run; the commands use nothing else.

Functions take sections of the recipe and paths, return what was recorded, and raise the errors of
`compressor.core.errors`. Nothing is printed: messages go to the logger `compressor`.
"""

from compressor.api.arms import Selection, select
from compressor.api.chat import evaluate_chat
from compressor.api.execution import Execution
from compressor.api.gating import gate, gates_of
from compressor.api.measuring import bench, evaluate, export, verify
from compressor.api.release import clean, directories_of, kept_parts, publish, require_publishable
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
from compressor.api.tasks import TaskShare, evaluate_tasks
from compressor.api.whole import plan, run, settle
from compressor.planning.plan import Plan

__all__ = [
    "Execution",
    "Plan",
    "SearchShare",
    "Selection",
    "TaskShare",
    "bench",
    "cache_logits",
    "clean",
    "correct_teacher",
    "directories_of",
    "distill",
    "evaluate",
    "evaluate_chat",
    "evaluate_tasks",
    "export",
    "gate",
    "gates_of",
    "generate",
    "kept_parts",
    "learn_masks",
    "plan",
    "prune",
    "publish",
    "quantize",
    "reconstruct",
    "require_publishable",
    "run",
    "search",
    "select",
    "settle",
    "sparsify",
    "verify",
]
