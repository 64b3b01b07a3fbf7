#!/usr/bin/env bash
# Llama-3.1-70B, full: 128 x a100-80 on 16 nodes, 954 steps of 256 sequences of 4,096 tokens; started by torchrun.
# Before it is started:
#   - start it on each of the 16 nodes, with the same MASTER_ADDR, the name of one of them; each must see this folder
set -euo pipefail
: "${DATA:?set DATA to a text file or a datasets path}"
test ! -e "$DATA" || DATA="$(realpath -- "$DATA")"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
: "${MASTER_ADDR:?set MASTER_ADDR to the first node, the same on every node}"
export MASTER_PORT="${MASTER_PORT:-29500}"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
exec torchrun --shutdown-timeout=300 --nnodes=16 --nproc-per-node=8 --rdzv-id=trainplan --rdzv-backend=c10d "--rdzv-endpoint=$MASTER_ADDR:$MASTER_PORT" \
  train.py \
  --plan=plan.json \
  "--data=$DATA" \
  --model=meta-llama/Llama-3.1-70B \
  "--out=${OUT:-run}"
