#!/usr/bin/env bash
# Llama-3.1-70B, full: 128 x a100-80 on 16 nodes, 954 steps of 256 sequences of 4,096 tokens; started by Accelerate.
# Before it is started:
#   - start it on each of the 16 nodes, with the same MASTER_ADDR and NODE_RANK 0 to 15
set -euo pipefail
: "${DATA:?set DATA to a text file or a datasets path}"
test ! -e "$DATA" || DATA="$(realpath -- "$DATA")"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
: "${MASTER_ADDR:?set MASTER_ADDR to the first node, the same on every node}"
: "${NODE_RANK:?set NODE_RANK to 0 on the first node, up to 15}"
export MASTER_PORT="${MASTER_PORT:-29500}"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
exec accelerate launch --config_file=accelerate.yaml "--machine_rank=$NODE_RANK" "--main_process_ip=$MASTER_ADDR" "--main_process_port=$MASTER_PORT" \
  train.py \
  --plan=plan.json \
  "--data=$DATA" \
  --model=meta-llama/Llama-3.1-70B \
  "--out=${OUT:-run}"
