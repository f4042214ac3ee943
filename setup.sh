#!/bin/sh
# Make a virtual environment with syncnorm and everything its studies and tests need:  sh setup.sh [FOLDER]
#
# torch comes from the machine if it has one (of any build, from 2.8 on), else from where pip finds the tested
# version. Where pip is pointed at a CPU build (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL or pip.conf), it takes that one,
# and no CUDA package is installed; where it is not, Linux gets the CUDA build.
set -eu
venv=${1:-.venv}
python=${PYTHON:-python3}
beat=
begun=$(date +%s)

say() { echo "setup: $*" >&2; }
seconds() { echo $(($(date +%s) - begun)); }
silence() {
    [ -z "$beat" ] || kill "$beat" 2>/dev/null || true
    beat=
}
ended() {
    code=$?
    silence
    [ "$code" = 0 ] || say "stopped after $(seconds) s, not finished. Once the cause is mended, the same command goes on."
}
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Run pip without its own output but errors, and say every 20 seconds that it still works.
install() {
    (while sleep 20 </dev/null >/dev/null 2>&1; do say "still installing $1 ($(seconds) s so far)"; done) &
    beat=$!
    what=$1
    shift
    "$venv/bin/pip" install -qq --disable-pip-version-check -c "$pins" "$@" || {
        say "pip could not install $what: its own message stands above."
        exit 1
    }
    silence
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$python is older than 3.11: set PYTHON to a newer one, as in 'make test PYTHON=python3.12'."
    exit 1
}
own_torch='import torch; raise SystemExit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8))'
sharing=
pins=constraints.txt
say "this happens once and takes 2 to 5 minutes where downloads are fast, more with torch's CUDA build (some 3 GB)"
if "$python" -c "$own_torch" 2>/dev/null; then
    say "using the torch that $python has"
    sharing=--system-site-packages
fi
say "1 of 3: making the virtual environment $venv"
"$python" -m venv $sharing "$venv" || {
    say "could not make $venv: on Debian, 'apt-get install python3-venv' brings what is missing."
    exit 1
}
if [ -n "$sharing" ]; then
    pins=$venv/constraints.txt
    grep -v -E '^(torch|numpy)==' constraints.txt > "$pins"
    say "2 of 3: torch is there already"
else
    say "2 of 3: installing torch, half a minute or more"
    install torch torch
fi
say "3 of 3: installing syncnorm and what its studies and tests need, about 140 packages, 1 to 3 minutes"
install "syncnorm and its packages" -e '.[all,dev]'
touch "$venv/ready"
say "ready after $(seconds) s: . $venv/bin/activate puts its commands at hand"
