"""A release pipeline in Python: prune a model, distill it, compare both, export and verify the student.

    python docs/examples/release.py MODEL TEXT OUT

Every function takes sections of the recipe and paths, returns the record of what it wrote, and raises an
error of `compressor.core.errors` that says what to do. Nothing is printed: messages go to the logger
`compressor`. What is in OUT already is not made again.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from compressor import api
from compressor.recipe.recipe import Calibration, Distill, Environment, Evaluate, Prune


def release(model: str, text: str, out: Path) -> float:
    """Make and verify a student of three quarters of the MLP; returns its perplexity over the teacher's."""
    execution = api.Execution(environment=Environment(seed=1, device="cpu", dtype="float32"))
    pruned = api.prune(
        model,
        out / "pruned",
        settings=Prune(shape={"intermediate_size": 96}),
        calibration=Calibration(data=text, size=8, seq_len=32),
        execution=execution,
    )
    student = api.distill(
        str(pruned.path),
        out / "student",
        settings=Distill(data=text, tokens=2_048, context_length=32, batch_size=4, report_to=()),
        teacher=model,
        execution=execution,
    )
    quality = api.evaluate(
        (model, str(student.path)),
        out / "quality",
        settings=Evaluate(data=text, seq_len=32, size=4),
        execution=execution,
    )
    exported = api.export(str(student.path), out / "release", "huggingface", execution=execution)
    api.verify(exported.path, source=student.path)
    teacher, smaller = (found["perplexity"] for found in quality.details["models"].values())
    return float(smaller / teacher)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.info("perplexity ratio %.3f", release(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
