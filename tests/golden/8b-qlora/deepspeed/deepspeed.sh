#!/usr/bin/env bash
# Llama-3-8B, qlora: 1 x h100 on 1 node, 954 steps of 256 sequences of 4,096 tokens; started by DeepSpeed's launcher.
set -euo pipefail
: "${DATA:?set DATA to a text file or a datasets path}"
test ! -e "$DATA" || DATA="$(realpath -- "$DATA")"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
exec deepspeed --num_gpus=1 --no_local_rank \
  train.py \
  --plan=plan.json \
  "--data=$DATA" \
  --model=meta-llama/Meta-Llama-3-8B \
  "--out=${OUT:-run}"
