#!/usr/bin/env bash
# Trains in GPUS processes per machine: bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Ports, and several machines: _meet.sh.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2; exit 2; }

source "$(dirname "$0")/_meet.sh"
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" \
    --nproc_per_node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
