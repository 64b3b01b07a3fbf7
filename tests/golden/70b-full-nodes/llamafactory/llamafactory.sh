#!/usr/bin/env bash
# Llama-3.1-70B, full: 128 x a100-80 on 16 nodes, 954 steps of 256 sequences of 4,096 tokens; started by LLaMA-
#     Factory.
# Before it is started:
#   - install llamafactory and deepspeed; 0.9.5 pins transformers and peft older than the plan's
#   - start it on each of the 16 nodes, with the same MASTER_ADDR and its NODE_RANK
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
! grep -q 'SET-DATA' dataset_info.json || { echo 'dataset_info.json: write a path or name in place of SET-DATA, or emit again with --data' >&2; exit 2; }
: "${MASTER_ADDR:?set MASTER_ADDR to the first node, the same on every node}"
: "${NODE_RANK:?set NODE_RANK to 0 on the first node, up to 15}"
export MASTER_PORT="${MASTER_PORT:-29500}"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export FORCE_TORCHRUN=1 NPROC_PER_NODE=8 NNODES=16 NODE_RANK MASTER_ADDR
exec llamafactory-cli train llamafactory.yaml
