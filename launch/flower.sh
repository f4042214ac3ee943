#!/bin/sh
# A run of the clients world through Flower's own tools, on one machine:
#
#   sh launch/flower.sh '{"world": {"count": 10, "method": "fedbn", "rounds": 5}}'
#
# The argument is a Run as JSON; what it leaves out has its defaults. Prints the ServerApp's log with the metrics at its
# end. Needs syncnorm[federated] installed. The same run without Flower: syncnorm.federated.simulate(run).
#
# Flower's parts: the SuperLink takes the run in and plays the server, here with simulated clients in Ray's processes.
# In a deployment start it without --simulation, and with certificates in the place of --insecure:
#   flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key --port 8000 \
#       --disable-runtime-dependency-installation
# and at each site a SuperNode with a partition-id of its own, the client of the run that this site plays:
#   flower-supernode --superlink HOST:8000 --root-certificates ca.crt --node-config 'partition-id=0 num-partitions=10'
# Several on one machine need a --port each. For nodes that prove who they are, add --enable-supernode-auth to the
# SuperLink, `flwr supernode register key.pub NAME` for each key (ssh-keygen -t ecdsa -b 384 -f key), and
# --auth-supernode-private-key key to the SuperNode; a node that restarts is let in once its old heartbeat has run out.
# The address in config.toml below gets root-certificates = "ca.crt" in the place of insecure = true.
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
