#!/usr/bin/env bash
# Llama-3.1-70B, full: 128 x a100-80 on 16 nodes, 954 steps of 256 sequences of 4,096 tokens; started by Kubeflow
#     Trainer.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
! grep -q 'SET-DATA' trainjob.yaml || { echo 'trainjob.yaml: write a path or name in place of SET-DATA, or emit again with --data' >&2; exit 2; }
kubectl create configmap trainplan-llama-3-1-70b \
  --from-file=train.py \
  --from-file=plan.json \
  --from-file=ds_config.json \
  --dry-run=client --output=yaml | kubectl apply --server-side --filename=-
kubectl create --filename=trainjob.yaml
