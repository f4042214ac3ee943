#!/bin/sh
# Make a virtual environment with syncnorm and everything its studies and tests need:  sh setup.sh [FOLDER]
#
# torch comes from the machine if it has one (of any build, from 2.8 on), else from where pip finds the tested
# version. Where pip is pointed at a CPU build (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL or pip.conf), it takes that one,
# and no CUDA package is installed; where it is not, Linux gets the CUDA build.
set -eu
venv=${1:-.venv}
python=${PYTHON:-python3}

say() { echo "setup: $*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$python is older than 3.11: set PYTHON to a newer one, as in 'make test PYTHON=python3.12'."
    exit 1
}
own_torch='import torch; raise SystemExit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8))'
sharing=
pins=constraints.txt
if "$python" -c "$own_torch" 2>/dev/null; then
    say "using the torch that $python has"
    sharing=--system-site-packages
fi
"$python" -m venv $sharing "$venv" || {
    say "could not make $venv: on Debian, 'apt-get install python3-venv' brings what is missing."
    exit 1
}
if [ -n "$sharing" ]; then
    pins=$venv/constraints.txt
    grep -v -E '^(torch|numpy)==' constraints.txt > "$pins"
else
    say "installing torch"
    "$venv/bin/pip" install -qq --disable-pip-version-check -c "$pins" torch
fi
say "installing syncnorm and what its studies and tests need"
"$venv/bin/pip" install -qq --disable-pip-version-check -c "$pins" -e '.[all,dev]'
touch "$venv/ready"
