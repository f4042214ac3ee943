#!/bin/sh
# The first ten minutes on a GPU:  sh launch/gpu.sh [--device cpu] [--out DIR] [--again]
#
# Checks first, then measurements, part by part, each at most LIMIT=150 seconds. What a part prints goes to DIR/PART.txt
# (results/gpu, on a CPU out/gpu), with the device and the versions in its first line, once the part has ended well.
# Start it again after an interruption, or after a part has failed: parts that ended on this device, with this torch, at
# this commit, are skipped unless --again is there. PARTS="checks bandwidth" runs these alone.
#
# With --device cpu everything is tiny: it shows that the parts work, and measures nothing.
set -u
device=cuda out="" again=""
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=${2-none}; [ $# -lt 2 ] || shift; shift ;;
        --out) out=${2-}; [ $# -lt 2 ] || shift; shift ;;
        --again) again=yes; shift ;;
        *) echo "gpu: '$1' is no option: see the first lines of launch/gpu.sh" >&2; exit 2 ;;
    esac
done
root=$(dirname "$(dirname "$(realpath "$0")")")
python=${PYTHON:-python}
case $device in
    cuda) out=${out:-$root/results/gpu} small="" ;;
    cpu) out=${out:-$root/out/gpu} small=--small; export CUDA_VISIBLE_DEVICES="" ;;
    *) echo "gpu: --device is '$device': write cuda or cpu" >&2; exit 2 ;;
esac
if [ "$device" = cpu ] && [ "$(realpath -m "$out")" = "$root/results/gpu" ]; then
    echo "gpu: results/gpu is for what a GPU has measured: leave --out out, or name another folder" >&2
    exit 2
fi
here=$(cd "$root" && "$python" -c '
import platform, sys, torch
from syncnorm.environment import environment
cuda, asked = torch.cuda.is_available(), sys.argv[1]
if asked == "cuda" and not cuda:
    sys.exit(f"gpu: torch {torch.__version__} sees no CUDA device; --device cpu tries the parts without one")
e, count = environment(), torch.cuda.device_count() if cuda else 0
name, commit = e["device"] if cuda else e["cpu"], e["commit"]
what = f"{count} x {name}, CUDA {torch.version.cuda}" if cuda else name
print(f"{what}; torch {torch.__version__}; Python {platform.python_version()}; syncnorm {commit}")' "$device") || exit 2

limited() { timeout --kill-after 10 "${LIMIT:-150}" "$python" "$@"; }
check() { limited -m pytest -q -m gpu -p no:cacheprovider -rfEs "$@"; }
measure() { limited benchmarks/device.py "$1" --device "$device" $small; }
part() {
    case $1 in
        layers) check tests/norms/test_gpu.py ;;
        checks) check tests/gpu ;;
        bandwidth | virtual | cohort | several) measure "$1" ;;
        *) echo "no part of this name: layers, checks, bandwidth, virtual, cohort, several"; return 2 ;;
    esac
}

cd "$root" && mkdir -p "$out" || exit 2
export SYNCNORM_DEVICE="$device" WANDB_MODE=disabled PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
failed="" began=$(date +%s)
echo "gpu: $here" >&2
for name in ${PARTS:-layers checks bandwidth virtual cohort several}; do
    file=$out/$name.txt
    if [ -z "$again" ] && [ -f "$file" ] && [ "$(head -n 1 "$file")" = "$here" ]; then
        echo "gpu: $name: done before" >&2
        continue
    fi
    echo "gpu: $name, $(($(date +%s) - began)) s so far" >&2
    echo "$here" > "$out/.$name.tmp"
    if part "$name" >> "$out/.$name.tmp" 2>&1; then
        mv "$out/.$name.tmp" "$file"
        rm -f "$out/$name.failed.txt"
    else
        mv "$out/.$name.tmp" "$out/$name.failed.txt"
        failed="$failed $name"
        tail -n 15 "$out/$name.failed.txt" >&2
    fi
done
echo "gpu: $(($(date +%s) - began)) s; results in $out" >&2
[ -z "$failed" ] || { echo "gpu: failed:$failed (see PART.failed.txt there); the same command tries them again" >&2; exit 1; }
