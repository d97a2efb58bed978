"""The published speed study on a CUDA GPU, with random weights: `python -m tests.gpu.bench_study OUT`.

Teacher, 4b-width and 4b-depth in 16 bits and in FP8 over the published lengths, at equal and at each
model's largest batch, and every matrix product of their layers dense and 2:4 (tests/gpu/sparse_gemm.py).
Published beside it: requests per second in FP8 rose 1.8x (width) and 2.7x (depth) over the 8B model with
twice its batch, and 1.3x from 16 bits to FP8 (Llama-3.1-Minitron, arXiv 2408.11796 and its announcement).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from compressor.choices.grids import PUBLISHED_ISL_OSL
from compressor.runs.artifact import write_json
from tests.gpu.sparse_gemm import MODELS as GEMM_MODELS
from tests.gpu.sparse_gemm import study

MODELS = ("llama3.1-8b", "4b-width", "4b-depth")
BENCH = (
    *("bench", "--random-weights", *MODELS, "--runtime", "torch", "--precision", "bf16,fp8"),
    *("--batch-size", "32,64,32:64,max", "--batch-limit", "4096", "--processes", "alternating"),
)
PUBLISHED = ",".join(f"{isl}/{osl}" for isl, osl in PUBLISHED_ISL_OSL)
_PROGRAM = "import sys; from compressor.cli.main import invoke; sys.exit(invoke(sys.argv[1:]))"


def bench_words(isl_osl: str, out: Path) -> list[str]:
    return [*BENCH, "--isl-osl", isl_osl, "-o", str(out)]


def main() -> None:
    parser = argparse.ArgumentParser(description="The published speed study on a CUDA GPU.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--isl-osl", default=PUBLISHED, help="fewer lengths, where time is short")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this study was not measured")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "gemm.json", study(list(GEMM_MODELS)))
    words = bench_words(arguments.isl_osl, arguments.out / "bench")
    subprocess.run([sys.executable, "-c", _PROGRAM, *words], check=True)


if __name__ == "__main__":
    main()
