#!/bin/sh
# A run of the clients world through Flower's own tools, on one machine:
#
#   sh launch/flower.sh '{"world": {"count": 10, "method": "fedbn", "rounds": 5}}'
#
# The argument is a Run as JSON; what it leaves out has its defaults. Prints the ServerApp's log with the metrics at its
# end. Needs syncnorm[federated] installed. The same run without Flower: syncnorm.federated.simulate(run).
#
# Flower's parts: the SuperLink takes the run in and plays the server, here with simulated clients in Ray's processes.
# In a deployment start it without --simulation (and with certificates in the place of --insecure), and at each site
#   flower-supernode --superlink HOST:8000 --node-config 'partition-id=0 num-partitions=10'
# with a partition-id of its own: the client of the run that this site plays.
set -eu
run=${1:-"{}"}
here=$(cd "$(dirname "$0")/.." && pwd)
port=${PORT:-8000}
clients=$(python - "$run" <<'COUNT'
import sys
from syncnorm.errors import UserError
from syncnorm.federated.flower.wire import run_from_text
try:
    print(run_from_text(sys.argv[1]).world.count)
except UserError as mistake:
    sys.exit(str(mistake))
COUNT
)

# Flower keeps its configuration, its log and the installed app in this folder.
FLWR_HOME=$(mktemp -d)
export FLWR_HOME FLWR_TELEMETRY_ENABLED=0 RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
printf '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:%s"\ninsecure = true\n' "$port" \
    > "$FLWR_HOME/config.toml"
printf "run = '''%s'''\n" "$run" > "$FLWR_HOME/run.toml"

# Without the last flag, it would install the app's dependencies anew for each run, over the network.
flower-superlink --insecure --simulation --port "$port" --disable-runtime-dependency-installation \
    > "$FLWR_HOME/superlink.log" 2>&1 &
superlink=$!
trap 'kill $superlink 2>/dev/null || true; wait $superlink 2>/dev/null || true; rm -rf "$FLWR_HOME"' EXIT INT TERM
python - "$port" <<'WAIT'
import socket, sys, time
for _ in range(300):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(sys.argv[1]))) == 0:
            sys.exit()
    time.sleep(0.1)
sys.exit("the SuperLink did not start: see superlink.log in FLWR_HOME")
WAIT

flwr run "$here" here --stream --run-config "$FLWR_HOME/run.toml" --federation-config "num-supernodes=$clients"
