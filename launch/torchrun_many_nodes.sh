#!/bin/sh
# Several machines: start the same line on each of them, within a few minutes of each other.
#
#   HEAD=node0:29400 NODES=2 sh launch/torchrun_many_nodes.sh RANKS_PER_NODE EXPERIMENT.py [options of syncnorm run]
#
# HEAD is a host that all reach, with a free port: the machines meet there (rendezvous), whichever starts first.
# Trains the runs that need exactly NODES x RANKS_PER_NODE real ranks. Rank 0, on one of the machines, writes the
# results folder; no shared file system is needed, but every machine needs the experiment and its data.
#
# If a node dies, the others end. With `sh launch/supervise.sh` before the command on each machine, all start afresh.
#
# Two "nodes" on one machine, to try it:
#   for node in 1 2; do HEAD=localhost:29400 NODES=2 sh launch/torchrun_many_nodes.sh 1 EXPERIMENT.py & done; wait
set -eu
ranks_per_node=$1
shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --nnodes "$NODES" --nproc-per-node "$ranks_per_node" --max-restarts 0 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${JOB:-syncnorm}" \
    -m syncnorm run "$@"
