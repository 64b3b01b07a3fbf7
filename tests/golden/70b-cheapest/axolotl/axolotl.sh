#!/usr/bin/env bash
# Llama-3.1-70B, lora: 4 x a100-80 on 1 node, 954 steps of 256 sequences of 4,096 tokens; started by Axolotl.
# Before it is started:
#   - install Axolotl with its extra deepspeed; 0.19.0 pins transformers and DeepSpeed older than the plan's
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
! grep -q 'SET-DATA' axolotl.yaml || { echo 'axolotl.yaml: write a path or name in place of SET-DATA, or emit again with --data' >&2; exit 2; }
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# Offload pins host RAM; a limit on locked memory stops it, or slows its transfers.
ulimit -l unlimited 2>/dev/null || echo "locked memory stops at $(ulimit -l) KiB; the plan needs 431 GiB of host RAM on a node" >&2
exec axolotl train axolotl.yaml --launcher=torchrun -- \
  --standalone --nproc-per-node=4
