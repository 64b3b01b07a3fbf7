#!/usr/bin/env bash
# Llama-3.1-70B, full: 128 x a100-80 on 16 nodes, 954 steps of 256 sequences of 4,096 tokens; started by DeepSpeed's
#     launcher.
# Before it is started:
#   - copy hostfile.template to hostfile and write the names of your 16 nodes into it; ssh must reach them without a
#     password, and each must see this folder under the same path
#   - HF_TOKEN does not travel over ssh: where the weights are gated, log in on every node
set -euo pipefail
: "${DATA:?set DATA to a text file or a datasets path}"
test ! -e "$DATA" || DATA="$(realpath -- "$DATA")"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
test -f hostfile || { echo 'hostfile: missing; copy hostfile.template and write the nodes into it' >&2; exit 2; }
# The launcher hands words to ssh unquoted: nothing that a shell would read may stand in them.
for value in "$PWD" "${DATA:-}" "${MODEL:-}" "${OUT:-}"; do
  case "$value" in *[!A-Za-z0-9_./:@%+=,-]*)
    echo "deepspeed over ssh cannot carry '$value'; use other names, or another target" >&2; exit 2 ;;
  esac
done
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
exec deepspeed --hostfile=hostfile --num_nodes=16 --num_gpus=8 --no_local_rank \
  train.py \
  --plan=plan.json \
  "--data=$DATA" \
  --model=meta-llama/Llama-3.1-70B \
  "--out=${OUT:-run}"
