#!/bin/sh
# A federation on one machine: a SuperLink and three SuperNodes with TLS and keys, and a run of fedbn in which each site
# has data of its own (data.py).
#
#   sh launch/federation/try.sh [--kill]
#
# With --kill, the second site's SuperNode is killed (kill -9) in the middle of the second round, and the SuperLink in the
# middle of the fourth; both start again by themselves. At the end, the model is compared with that of a simulation.
# Exit code 0: the run has ended with a model, and it is that of the simulation. Some minutes. KEEP=folder keeps all.
set -eu
here=$(dirname "$(realpath "$0")")
python=${PYTHON:-python}
kill_some=""
case ${1:-} in
    "") ;;
    --kill) kill_some=yes ;;
    *) echo "try: '$1' is no option: write --kill or nothing" >&2; exit 2 ;;
esac
for tool in flower-superlink flower-supernode flwr; do
    command -v "$tool" > /dev/null || { echo "try: there is no $tool: pip install 'syncnorm[federated]'" >&2; exit 2; }
done
folder=${KEEP:-$(mktemp -d)}
mkdir -p "$folder"
# Ports that are free now: the SuperLink's, and one a SuperNode for what it starts itself.
ports=$("$python" -c '
import socket
probes = [socket.socket() for _ in range(4)]
for probe in probes:
    probe.bind(("127.0.0.1", 0))
print(*(probe.getsockname()[1] for probe in probes))')
set -- $ports
port=$1
shift
export CERTIFICATES="$folder/certificates" FLWR_TELEMETRY_ENABLED=0 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PAUSE=3
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
run='{"data": {"name": "sites", "options": {"shape": [1, 8, 8], "classes": 10}}, "precision": "float64",
    "world": {"count": 3, "rounds": '${ROUNDS:-5}', "method": "fedbn"}}'

started=""
end() {
    trap - EXIT INT TERM
    for one in $started; do kill "$one" 2> /dev/null || true; done
    wait
    [ -n "${KEEP:-}" ] || rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

"$python" "$here/certificates.py" make "$CERTIFICATES" --host 127.0.0.1 --sites 3
STATE="$folder/superlink" HOST=127.0.0.1 PORT="$port" sh "$here/superlink.sh" & started="$started $!"
link=$!
until [ -f "$folder/superlink/known/2" ]; do
    kill -0 "$link" 2> /dev/null || { echo "try: the SuperLink did not start" >&2; exit 1; }
    sleep 0.5
done
site=0
for own in "$@"; do
    SUPERLINK="127.0.0.1:$port" SITE=$site SITES=3 STATE="$folder/site-$site" PORT="$own" DATA="$here/data.py" \
        sh "$here/supernode.sh" & started="$started $!"
    site=$((site + 1))
done

# How many times a site was asked to train.
begun() { sed -n 's/.*Receiving: train.*/x/p' "$folder/site-$1/supernode.log" 2> /dev/null | wc -l; }
: > "$folder/run.log"
if [ -n "$kill_some" ]; then
    (
        trap - EXIT
        until grep -q 'round 1 of' "$folder/run.log" && [ "$(begun 1)" -ge 2 ]; do sleep 0.2; done
        kill -9 "$(cat "$folder/site-1/pid")"
        echo "try: killed the SuperNode of site 1 in round 2" >&2
        until grep -q 'round 3 of' "$folder/run.log" && [ "$(begun 0)" -ge 4 ]; do sleep 0.2; done
        kill -9 "$(cat "$folder/superlink/pid")"
        echo "try: killed the SuperLink in round 4" >&2
    ) & started="$started $!"
fi
# In the background, so that a signal is heard at once. One site after the other: Flower gives a client's process half a
# minute to start, and three at once may need longer on a small machine.
"$python" "$here/run.py" "$run" --superlink "127.0.0.1:$port" --certificates "$CERTIFICATES" \
    --folder "$folder/results" --timeout 240 --at-once 1 >> "$folder/run.log" 2>&1 & started="$started $!"
running=$!
tail -n +1 -f --pid "$running" "$folder/run.log" &
wait "$running" || { code=$?; echo "try: the run has failed" >&2; exit "$code"; }
"$python" "$here/compare.py" "$folder/results" "$here/data.py"
echo "try: the run has ended with a model${KEEP:+: $folder/results/global.pt}" >&2
