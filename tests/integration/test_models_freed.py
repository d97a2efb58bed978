"""No stage keeps a model alive: the memory of the next one would be held twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.integration.command import TIMEOUT_S, write_recipe

# A process of its own: what a library keeps of its first import happens once.
PROGRAM = """
import gc, sys
from compressor.cli.main import invoke
code = invoke(sys.argv[1:])
gc.collect()
from transformers import PreTrainedModel
alive = [type(found).__name__ for found in gc.get_objects() if isinstance(found, PreTrainedModel)]
print("alive:", *alive)
sys.exit(code)
"""
STAGES = {
    "distill": {"tokens": 32, "context_length": 16},
    "quantize": {"fp8": True},
    "sparsify": {"pattern": "2:4", "tokens": 32},
    "export": {"formats": ["huggingface-fp8", "tensorrt-llm-fp8", "onnx"]},
    "bench": {"runtime": "none"},
}


def test_no_model_outlives_the_stages_of_a_run(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_checkpoint, tiny_text, **STAGES)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "run", "--config", recipe, "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["alive:"]
