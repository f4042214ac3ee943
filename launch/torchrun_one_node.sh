#!/bin/sh
# One machine, one process a rank:  sh launch/torchrun_one_node.sh RANKS EXPERIMENT.py [options of syncnorm run]
#
# Trains those runs of the study that need exactly RANKS real ranks: its torchrun runs, in any world; with --engine
# torchrun, any run of that many devices, and all runs of clients. Each rank takes one GPU where there are any (NCCL), else one CPU thread (gloo).
# No restarts by torchrun itself: start the command again, and it goes on with the runs that are still missing, or
# write `sh launch/supervise.sh` before it, which does so where a rank was killed.
set -eu
ranks=$1
shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --standalone --nproc-per-node "$ranks" --max-restarts 0 -m syncnorm run "$@"
