#!/usr/bin/env bash
# Llama-3.1-70B, lora: 4 x a100-80 on 1 node, 954 steps of 256 sequences of 4,096 tokens; started by Accelerate.
set -euo pipefail
: "${DATA:?set DATA to a text file or a datasets path}"
test ! -e "$DATA" || DATA="$(realpath -- "$DATA")"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# Offload pins host RAM; a limit on locked memory stops it, or slows its transfers.
ulimit -l unlimited 2>/dev/null || echo "locked memory stops at $(ulimit -l) KiB; the plan needs 431 GiB of host RAM on a node" >&2
exec accelerate launch --config_file=accelerate.yaml \
  train.py \
  --plan=plan.json \
  "--data=$DATA" \
  --model=meta-llama/Llama-3.1-70B \
  "--out=${OUT:-run}"
