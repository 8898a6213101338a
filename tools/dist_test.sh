#!/usr/bin/env bash
# Tests in GPUS processes per machine: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Ports, and several machines: _meet.sh.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2; exit 2; }

source "$(dirname "$0")/_meet.sh"
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" \
    --nproc_per_node="$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
