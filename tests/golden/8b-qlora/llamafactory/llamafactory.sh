#!/usr/bin/env bash
# Llama-3-8B, qlora: 1 x h100 on 1 node, 954 steps of 256 sequences of 4,096 tokens; started by LLaMA-Factory.
# Before it is started:
#   - install llamafactory and deepspeed; 0.9.5 pins transformers and peft older than the plan's
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
! grep -q 'SET-DATA' dataset_info.json || { echo 'dataset_info.json: write a path or name in place of SET-DATA, or emit again with --data' >&2; exit 2; }
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export FORCE_TORCHRUN=1 NPROC_PER_NODE=1
exec llamafactory-cli train llamafactory.yaml
