#!/usr/bin/env bash
# All that a GPU has to show, as JSON, in ten minutes at most (docs/processors.md):
#   benchmarks/on_gpu.sh [--device cuda|cpu] [--quick] [--pack DIR] [--only "PART ..."] OUT
# --pack is a folder by benchmarks.pack; without one, embedded digits, packaged models and a wheel made here.
# --only names parts: verdicts verdicts-tf32 synchronisations draws formats pgd g eot training autoattack compile,
#   the five before the last through torch.compile: pgd-compiled ... autoattack-compiled; and train, train-g,
#   which train for half of the seconds that are left, where the pack has training images.
# PYTHON names the interpreter, SECONDS_IN_ALL the budget (600).
set -u
usage() { sed -n 2,8p "$0" >&2; exit 2; }
device=cuda quick= pack= only= out=
while [ $# -gt 0 ]; do
    case $1 in
        --device|--pack|--only) [ $# -ge 2 ] || usage; declare "${1#--}=$2"; shift 2 ;;
        --quick) quick=1; shift ;;
        -*) usage ;;
        *) [ -z "$out" ] || usage; out=$1; shift ;;
    esac
done
[ -n "$out" ] || usage
speeds="pgd g eot training autoattack"
parts="verdicts verdicts-tf32 synchronisations draws formats $speeds compile $(printf '%s-compiled ' $speeds)train train-g"
for each in $only; do
    [[ " $parts " == *" $each "* ]] || { echo "--only $each: no such part; there are $parts" >&2; exit 2; }
done
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
[ ! -e "$out/parts.tsv" ] || { echo "$out holds another run: give a new folder" >&2; exit 2; }
if [ -n "$pack" ]; then pack=$(cd "$pack" && pwd) || exit 2; fi
python=${PYTHON:-python3} budget=${SECONDS_IN_ALL:-600}

# The wheel unpacked, beside the benchmarks: the parts import it, not this working tree.
run=$(mktemp -d) && trap 'rm -rf "$run"' EXIT
from=${pack:-$run}
[ -n "$pack" ] || "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$run" "$here" || exit 1
"$python" -m zipfile -e "$from"/robusttrain-*.whl "$run" && cp -r "$here/benchmarks" "$run" || exit 1
if [ -n "$pack" ]; then  # the wheel is what runs, whatever lies around this script
    commit=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["commit"] or "")' "$pack/pack.json")
else
    commit=$(git -C "$here" rev-parse HEAD 2>"$run/no-git")
fi
if [ -n "$pack" ]; then export PYTHONPATH="$pack/peers${PYTHONPATH:+:$PYTHONPATH}"; fi
cd "$run" && ln -s "$out" out || exit 1  # commands in reports name no folder of this machine
[ -z "$pack" ] || ln -s "$pack" pack || exit 1
: >out/parts.tsv

part() {  # NAME LIMIT MODULE ARGUMENT...: one part, its JSON and its log
    local name=$1 limit=$2 code started=$SECONDS; shift 2
    [ "$device" != cpu ] || limit=$((5 * limit))  # a GPU's limits are too short for a CPU
    if [ -n "$only" ] && [[ " $only " != *" $name "* ]]; then skip "$name" "not among --only"; return; fi
    if [ $((budget - SECONDS)) -lt 10 ]; then skip "$name" "the $budget seconds in all were spent"; return; fi
    [ $((budget - SECONDS)) -ge "$limit" ] || limit=$((budget - SECONDS))
    timeout --kill-after 5 "$limit" "$python" -m "$@" --device "$device" --output "out/$name.json" \
        </dev/null >"out/$name.log" 2>&1  # a compiler that reads a terminal from behind timeout would be stopped
    code=$?
    printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - started))" "$limit" >>out/parts.tsv
    echo "$name: exit code $code, $((SECONDS - started)) s"
}
skip() { printf '%s\t%s\t0\t0\n' "$1" "left out: $2" >>out/parts.tsv; echo "$1: left out: $2"; }

data=(--epsilon 0.062) draws_of=()
if [ -n "$pack" ]; then
    draws_of=(--root pack/images --weights pack/f_b.pth)
    data=(--epsilon 0.031 "${draws_of[@]}")
fi
if [ -n "$quick" ]; then
    verdicts=(--images 8 --steps 2 --draws 2) speed=(--images 8 --steps 2 --rounds 1) behind=(--timed_draws 2)
    compile=(--images 16 --steps 2 --g_steps 2 --rounds 1 --dtypes float32)
    formats=(--images 8 --rounds 1 --models vgg_small)
    aa=(--images 4 --attack apgd-ce --rounds 0) memory=(--images 8 --draws 1 5) waits=(--images 4 --steps 1 2)
else
    verdicts=(--images 100 --steps 10 --draws 2) speed=(--images 256 --steps 10 --rounds 5)
    aa=(--images 128 --rounds 0) memory=(--images 100 --draws 1 5 20 100)
    waits=(--images 32 --steps 5 10) behind=(--timed_draws 6)
    compile=(--images 256 --rounds 5) formats=(--images 256)
fi
if [ "$device" = cpu ]; then ln -s "$here/tests/pretend" pretend && waits+=(--pretend pretend); fi

part verdicts 90 benchmarks.both_devices "${verdicts[@]}" "${data[@]}"
if [ "$device" = cpu ]; then skip verdicts-tf32 "a CPU has no TF32"
else part verdicts-tf32 90 benchmarks.both_devices --tf32 "${verdicts[@]}" "${data[@]}"; fi
part synchronisations 60 benchmarks.synchronisations "${waits[@]}" "${data[@]}"
part draws 60 benchmarks.draws "${memory[@]}" "${draws_of[@]}"
part formats 60 benchmarks.formats "${formats[@]}" "${draws_of[@]}"

speed() {  # SUFFIX OPTION...: the five parts that are times
    local suffix=$1; shift
    part "pgd$suffix" 90 benchmarks.speed pgd "$@" "${speed[@]}" "${data[@]}"
    part "g$suffix" 90 benchmarks.speed g "$@" "${speed[@]}" "${data[@]}"
    part "eot$suffix" 90 benchmarks.speed eot "$@" "${speed[@]}" "${behind[@]}" "${data[@]}"
    part "training$suffix" 120 benchmarks.speed training "$@" "${speed[@]}" "${data[@]}"
    part "autoattack$suffix" 180 benchmarks.speed autoattack "$@" "${aa[@]}" "${data[@]}"
}
speed ""
if [ -n "$quick" ] && [ -z "$only" ]; then
    for each in compile $(printf '%s-compiled ' $speeds); do skip "$each" "--quick compiles nothing"; done
else
    part compile 120 benchmarks.compiled "${compile[@]}" "${data[@]}"
    speed -compiled --compiled
fi

for each in adversarial behind-g; do  # the paper's setting, for as long as the machine is there
    name=train left=$((budget - SECONDS - 5)) f_b=() small=()
    [ $each = adversarial ] || name=train-g f_b=(--f_b pack/f_b.pth)
    [ $each = behind-g ] || [[ -n "$only" && " $only " != *" train-g "* ]] || left=$((left / 2))
    if [ -n "$quick" ]; then small=(--images 8 --model resnet_small --attack fgsm --more robust.images=8); fi
    if [ ! -e pack/train.tar.xz ]; then skip $name "no training images: benchmarks.pack --training"; continue; fi
    [ -e data ] || { mkdir data && tar -xf pack/train.tar.xz -C data && ln -s ../pack/images/test data/test; }
    part $name "$left" benchmarks.trained $each --root data "${f_b[@]}" "${small[@]}" --seconds "$((left - 5))"
done

"$python" -m benchmarks.summary out --device "$device" --commit "$commit"
