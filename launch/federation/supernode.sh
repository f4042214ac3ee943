#!/bin/sh
# The SuperNode of a site:
#
#   SUPERLINK=link.example.org:8000 SITE=0 SITES=3 CERTIFICATES=certificates sh supernode.sh
#
# CERTIFICATES holds ca.crt and sites/SITE/key. SITE is the number of this site, from 0, and SITES how many there are.
# DATA is this site's data, a Python file (see README.md); without it, the run names data that every site has. STATE is
# where the site keeps what never leaves it, with the log. Several on one machine need a PORT each.
#
# It starts again by itself until it gets SIGTERM or SIGINT: a SuperLink lets a SuperNode that was killed in again only
# when it has missed its heartbeat, after about a minute.
set -u
here=$(dirname "$(realpath "$0")")
python=${PYTHON:-python}
site=${SITE:?is the number of this site, from 0} sites=${SITES:?is the number of sites}
superlink=${SUPERLINK:?is where the SuperLink is, such as link.example.org:8000}
certificates=$(realpath -m "${CERTIFICATES:-certificates}") state=$(realpath -m "${STATE:-state/site-$site}")
port=${PORT:-9094}
"$python" "$here/certificates.py" check-site "$certificates" --site "$site" --superlink "$superlink" --port "$port" ||
    exit 2
own="partition-id=$site num-partitions=$sites folder=\"$state/kept\""
if [ -n "${DATA:-}" ]; then
    "$python" "$here/check_data.py" "$DATA" "$site" "$sites" || exit 2
    own="$own data=\"$(realpath "$DATA")\""
fi
mkdir -p "$state" || exit 2
FLWR_HOME=$state
export FLWR_HOME FLWR_TELEMETRY_ENABLED="${FLWR_TELEMETRY_ENABLED:-0}"

node=""
stop() {
    trap '' TERM INT
    # It waits for connections that are open: a second signal ends that, and a third the rest.
    for signal in TERM TERM KILL; do
        [ -z "$node" ] || kill -"$signal" "$node" 2> /dev/null || break
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            kill -0 "$node" 2> /dev/null || break 2
            sleep 1
        done
    done
    exit 0
}
trap stop TERM INT
while :; do
    flower-supernode --superlink "$superlink" --root-certificates "$certificates/ca.crt" \
        --auth-supernode-private-key "$certificates/sites/$site/key" --port "$port" --node-config "$own" \
        >> "$state/supernode.log" 2>&1 &
    node=$!
    echo "$node" > "$state/pid"
    echo "site $site: SuperNode started, log in $state/supernode.log" >&2
    wait "$node"
    echo "site $site: the SuperNode has ended ($?), and starts again in ${PAUSE:-5} s: either the SuperLink still" \
        "waits for the heartbeat of the one before (a minute), or it does not know this key" >&2
    sleep "${PAUSE:-5}"
done
