#!/bin/sh
# Start a command again whenever it was killed or has crashed:  sh launch/supervise.sh COMMAND [arguments]
#
#   sh launch/supervise.sh sh launch/torchrun_one_node.sh 2 EXPERIMENT.py --engine torchrun
#   HEAD=node0:29400 NODES=2 sh launch/supervise.sh sh launch/torchrun_many_nodes.sh 1 EXPERIMENT.py    on each machine
#   sh launch/supervise.sh syncnorm run EXPERIMENT.py
#
# Each start is a fresh torchrun, not a restart within one. Finished runs are kept, and the one that was cut off goes on
# from its checkpoint. The devices' ranks each have a file of it, so start the same ranks on the same machines; a run of
# clients goes on with any number of ranks.
#
# It ends with 0 when the study has ended, with 2 after a mistake that another start would repeat, with 1 if runs have
# failed or after RESTARTS starts in a row. A launch that lived HEALTHY seconds starts the count anew. It waits PAUSE
# seconds before the first new start, and twice as long before each further one, at most LONGEST_PAUSE. SIGTERM, SIGINT
# and SIGHUP go on to the command, as SIGTERM, and end the loop.
set -u
[ $# -gt 0 ] || { echo "supervise: write the command after the script: sh launch/supervise.sh COMMAND" >&2; exit 2; }
restarts=${RESTARTS:-10} pause=${PAUSE:-5} longest=${LONGEST_PAUSE:-300} healthy=${HEALTHY:-600}

SYNCNORM_EXIT_FILE=$(mktemp)  # where a rank writes that the study has ended, or a mistake: torchrun returns 1 for all
export SYNCNORM_EXIT_FILE
trap 'rm -f "$SYNCNORM_EXIT_FILE"' EXIT

child="" stopped=""
stop() {
    stopped=$1
    [ -z "$child" ] || kill -s TERM "$child" 2>/dev/null
}
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM

run() {  # run a command in the background, so that a signal is heard at once; its exit code is in $code
    "$@" &
    child=$!
    [ -z "$stopped" ] || kill -s TERM "$child" 2>/dev/null  # the signal came before there was a child to pass it on to
    wait "$child"
    code=$?
    while kill -s 0 "$child" 2>/dev/null; do  # a signal has ended the wait
        wait "$child"
        code=$?
    done
    child=""
}

count=0 wait_for=$pause
while :; do
    : > "$SYNCNORM_EXIT_FILE"
    began=$(date +%s)
    run "$@"
    lived=$(($(date +%s) - began))
    said=$(cat "$SYNCNORM_EXIT_FILE")
    [ -z "$stopped" ] || exit "$stopped"
    [ "$code" -ne 0 ] || exit 0
    [ "${said:-$code}" -ne 2 ] || { echo "supervise: not started again, since the mistake would be the same" >&2; exit 2; }
    [ "$said" != 1 ] || { echo "supervise: the study has ended, and runs have failed" >&2; exit 1; }
    [ "$lived" -lt "$healthy" ] || { count=0; wait_for=$pause; }
    count=$((count + 1))
    [ "$count" -le "$restarts" ] || { echo "supervise: given up after $restarts starts in a row" >&2; exit 1; }
    echo "supervise: ended with code $code after $lived s; start $count of $restarts in $wait_for s" >&2
    run sleep "$wait_for"
    [ -z "$stopped" ] || exit "$stopped"
    wait_for=$((wait_for * 2))
    [ "$wait_for" -le "$longest" ] || wait_for=$longest
done
