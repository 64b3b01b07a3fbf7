#!/usr/bin/env bash
# Llama-3.1-70B, full: 128 x a100-80 on 16 nodes, 954 steps of 256 sequences of 4,096 tokens; started by Axolotl.
# Before it is started:
#   - install Axolotl with its extra deepspeed; 0.19.0 pins transformers and DeepSpeed older than the plan's
#   - start it on each of the 16 nodes, with the same MASTER_ADDR
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
! grep -q 'SET-DATA' axolotl.yaml || { echo 'axolotl.yaml: write a path or name in place of SET-DATA, or emit again with --data' >&2; exit 2; }
: "${MASTER_ADDR:?set MASTER_ADDR to the first node, the same on every node}"
export MASTER_PORT="${MASTER_PORT:-29500}"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
exec axolotl train axolotl.yaml --launcher=torchrun -- \
  --nnodes=16 --nproc-per-node=8 --rdzv-id=trainplan --rdzv-backend=c10d "--rdzv-endpoint=$MASTER_ADDR:$MASTER_PORT"
