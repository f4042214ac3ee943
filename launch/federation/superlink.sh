#!/bin/sh
# The SuperLink of a federation, with TLS, and open to known sites alone:
#
#   CERTIFICATES=certificates PORT=8000 sh superlink.sh
#
# CERTIFICATES holds what `certificates.py make` wrote: ca.crt, server.pem, server.key, sites/*/key.pub. A site that is
# added there is let in at the next start. STATE is where it keeps what it knows, with its log; HOST is the address that
# it listens on. It starts again by itself, and goes on with what it knew, until it gets SIGTERM or SIGINT.
set -u
here=$(dirname "$(realpath "$0")")
python=${PYTHON:-python}
certificates=$(realpath -m "${CERTIFICATES:-certificates}") state=$(realpath -m "${STATE:-state/superlink}")
port=${PORT:-8000} host=${HOST:-0.0.0.0}
"$python" "$here/certificates.py" check-link "$certificates" --port "$port" || exit 2
mkdir -p "$state/known" || exit 2
FLWR_HOME=$state
export FLWR_HOME FLWR_TELEMETRY_ENABLED="${FLWR_TELEMETRY_ENABLED:-0}"
printf '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:%s"\nroot-certificates = "%s"\n' \
    "$port" "$certificates/ca.crt" > "$state/config.toml"

# Lets in the sites whose keys it does not know yet.
let_in() {
    until "$python" -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1)' "$port" \
        2> /dev/null; do
        kill -0 "$1" 2> /dev/null || return 0
        sleep 0.5
    done
    for key in "$certificates"/sites/*/key.pub; do
        site=$(basename "$(dirname "$key")")
        [ -f "$key" ] && ! cmp -s "$key" "$state/known/$site" || continue
        if said=$(flwr supernode register "$key" here --name "site-$site" 2>&1); then
            cp "$key" "$state/known/$site" && echo "superlink: site $site is let in" >&2
        else
            echo "superlink: site $site cannot be let in: $said" >&2
        fi
    done
    echo "superlink: ready on port $port, log in $state/superlink.log" >&2
}

link=""
stop() {
    trap '' TERM INT
    # It waits for connections that are open: a second signal ends that, and a third the rest.
    for signal in TERM TERM KILL; do
        [ -z "$link" ] || kill -"$signal" "$link" 2> /dev/null || break
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            kill -0 "$link" 2> /dev/null || break 2
            sleep 1
        done
    done
    exit 0
}
trap stop TERM INT
while :; do
    # Without the last flag, it would install the app's dependencies anew for each run, over the network.
    flower-superlink --host "$host" --port "$port" --database "$state/superlink.db" --enable-supernode-auth \
        --ssl-ca-certfile "$certificates/ca.crt" --ssl-certfile "$certificates/server.pem" \
        --ssl-keyfile "$certificates/server.key" --disable-runtime-dependency-installation \
        >> "$state/superlink.log" 2>&1 &
    link=$!
    echo "$link" > "$state/pid"
    let_in "$link"
    wait "$link"
    echo "superlink: it has ended ($?), and starts again in ${PAUSE:-5} s; the reason is in $state/superlink.log" >&2
    sleep "${PAUSE:-5}"
done
