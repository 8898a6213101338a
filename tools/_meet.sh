# How the processes of a run meet, for dist_train.sh and dist_test.sh: sets `meet`, arguments of torch.distributed.run.
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT. On one machine a free port is found, if PORT is not
# set. Without CUDA the processes run on the CPU.
if [ -z "${PORT:-}${NNODES:-}${MASTER_ADDR:-}" ]; then
    meet=(--standalone --local_addr=127.0.0.1)
else
    meet=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${PORT:-29500}")
fi
