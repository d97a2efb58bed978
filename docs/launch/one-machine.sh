#!/usr/bin/env bash
# Prune and repair on one GPU, correct the teacher and distill on all GPUs of this machine; then quantize, export,
# prove that both exports are the student, and compare it with the teacher on a text that nothing was trained on.
# Run it again after any interruption: what is finished is skipped, and training continues from its last checkpoint
# on the same number of GPUs.
#
#   MODEL=llama3.1-8b HELDOUT=heldout.jsonl OUT=out docs/launch/one-machine.sh
#
# MODEL and TARGET belong to RECIPE: set all three together, so that the plan is about the student that is made.
set -euo pipefail

MODEL="${MODEL:-llama3.1-8b}"
TARGET="${TARGET:-4b-width}"
RECIPE="${RECIPE:-recipes/llama3.1-minitron-4b-width.yaml}"
OUT="${OUT:-out}"
GPUS="${GPUS:-8}"
HELDOUT="${HELDOUT:?a text that nothing was trained on, such as heldout.jsonl}"

compress-export plan --config "$RECIPE" --num-gpus "$GPUS"
compress-export prune "$MODEL" --target "$TARGET" --config "$RECIPE" -o "$OUT/pruned"
compress-export reconstruct "$OUT/pruned" --teacher "$MODEL" --config "$RECIPE" -o "$OUT/repaired"

# One thread per process unless told otherwise: the GPUs do the work.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
torchrun --standalone --nproc-per-node "$GPUS" -m compressor.cli.main correct-teacher "$MODEL" \
  --config "$RECIPE" -o "$OUT/corrected"
torchrun --standalone --nproc-per-node "$GPUS" -m compressor.cli.main distill "$OUT/repaired" \
  --teacher "$OUT/corrected" --teacher-correction off --config "$RECIPE" -o "$OUT/distilled"

compress-export export "$OUT/distilled" --format huggingface --precision bf16 -o "$OUT/student"
compress-export quantize "$OUT/distilled" --fp8 -o "$OUT/quantized"
compress-export export "$OUT/quantized" --format huggingface --precision fp8 -o "$OUT/student-fp8"
compress-export verify "$OUT/student" --source "$OUT/distilled"
compress-export verify "$OUT/student-fp8" --source "$OUT/quantized"
compress-export evaluate "$MODEL" "$OUT/distilled" "$OUT/quantized" --data "$HELDOUT" -o "$OUT/quality"
