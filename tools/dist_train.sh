#!/usr/bin/env bash
# Trains in GPUS processes per machine: bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT. On one machine a free port is found, if PORT is not
# set. Without CUDA the processes run on the CPU.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2; exit 2; }

if [ -z "${PORT:-}${NNODES:-}${MASTER_ADDR:-}" ]; then
    meet=(--standalone --local_addr=127.0.0.1)
else
    meet=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" \
    --nproc_per_node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
