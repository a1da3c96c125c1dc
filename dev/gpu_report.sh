#!/usr/bin/env bash
# Everything that wants a GPU, into one folder, within ten minutes: dev/gpu_report.sh OUT [STEP...]
#
# Steps, in the order in which they run: machine probes kernels bench parity train peers torch sanitizer; what is ours and may be wrong
# comes first. It needs no cargo and no network: it runs from a checkout after `make gpu-report-programs`, or where build/gpu.tar.xz was
# unpacked. Each step is cut into parts, each part is a process of its own with a log of its own and a time limit, and none stops the
# others. Steps can be run in pieces, into the same folder.
#
# After each part OUT/report.tgz has everything so far (SAVE names another file), without data and checkpoints; OUT/REPORT.md is one
# page made of all logs that are there.
#   DEVICE=emulated   tries it out without a GPU, at tiny sizes
#   PYTHON=python3    one that has PyTorch; cuBLASLt and NCCL of its packages are used, unless VIRTUAL_ENV names another
#   LIMIT_bench=300   another limit for a step, in seconds
#   SIZES="-e d12,d24 -b 64 -t 1024"   what `bench` and `peers` measure
#   KERNELS="attention matmul::hopper" which tests `kernels` and `sanitizer` run
set -uo pipefail
OUT=${1:?usage: dev/gpu_report.sh OUT [STEP...]}
shift
# Paths that were given are the caller's, those below are of the folder that this script came with.
OUT=$(realpath -m -- "$OUT")
SAVE=$(realpath -m -- "${SAVE:-$OUT/report.tgz}")
[ -z "${BIN:-}" ] || BIN=$(realpath -m -- "$BIN")
# As it is, link or not: a virtual environment is where its link lies.
[[ "${PYTHON:-}" != */* ]] || PYTHON=$(realpath -ms -- "$PYTHON")
cd "$(dirname "$0")/.."

ALL="machine probes kernels bench parity train peers torch sanitizer"
STEPS=${*:-$ALL}
DEVICE=${DEVICE:-cuda}
BIN=${BIN:-build/gpu}
PYTHON=${PYTHON:-$([ -x build/venv/bin/python ] && echo build/venv/bin/python || echo python3)}
# Seconds from which `timeout` kills what does not end when it is told to.
GRACE=5
# Exit status of a part that needs something this machine does not have.
ABSENT=77

# limit STEP: its seconds, of all parts together.
limit() {
    local given=LIMIT_$1 seconds
    case $1 in
    machine) seconds=20 ;; probes) seconds=20 ;; kernels) seconds=95 ;; bench) seconds=85 ;; parity) seconds=40 ;;
    train) seconds=145 ;; peers) seconds=35 ;; torch) seconds=110 ;; sanitizer) seconds=45 ;;
    esac
    echo "${!given:-$seconds}"
}

# --- running parts

# say NAME RESULT SECONDS: a line for the page and for who watches.
say() {
    printf '%s | %s | %s\n' "$1" "$2" "$3" | tee "$OUT/$1.result"
}

# Everything so far, in one file for machines that give few of them back; whole at any moment.
save() {
    local new
    new=$(mktemp) && tar -C "$OUT" -czf "$new" --exclude='*.bin' --exclude=./data --exclude='./report.tgz*' . &&
        cp "$new" "$SAVE.new" && mv "$SAVE.new" "$SAVE" && chmod a+r "$SAVE"
    rm -f "$new"
}

# part NAME SECONDS COMMAND...: with its log in OUT/NAME.log; less time, or none, where the step's is over. Returns 1 if it failed.
part() {
    local name=$1 seconds=$2 started=$SECONDS left=$((deadline - SECONDS - GRACE)) result failed=0
    shift 2
    [ "$left" -gt "$seconds" ] || seconds=$left
    if [ "$seconds" -lt 1 ]; then
        rm -f "$OUT/$name.log"
        say "$name" "FAILED, not run: the time of $step was over" 0
        return 1
    fi
    timeout -k $GRACE "$seconds" "$@" >"$OUT/$name.log" 2>&1
    case $? in
    0) result=ok ;;
    "$ABSENT") result=absent ;;
    124 | 137) result="FAILED, not done in $seconds s" failed=1 ;;
    *) result=FAILED failed=1 ;;
    esac
    say "$name" "$result" $((SECONDS - started))
    save
    return $failed
}

# --- steps

# machine: what this machine is. Which cuBLASLt our programs take they say themselves, in the logs of `bench` and `train`.
describe_machine() {
    echo "system: $(uname -srm)"
    echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores"
    echo "source: $(git describe --always --dirty 2>/dev/null || cat SOURCE 2>/dev/null || echo unknown)"
    echo "Python: $("$PYTHON" -c 'import sys; print(sys.executable, sys.version.split()[0])' 2>/dev/null || echo none)"
    local name found
    for name in libcuda.so.1 libnvidia-ml.so.1 libnccl.so.2; do
        found=$({ ldconfig -p | sed -n "s/^[[:space:]]*${name//./\\.} .*=> //p"
            find /usr/local/cuda/lib64 "${VIRTUAL_ENV:-/nowhere}" -name "$name"; } 2>/dev/null | head -1)
        echo "library: $name: ${found:-not found}"
    done
    [ "$DEVICE" = cuda ] || { echo "GPU: emulated device"; return; }
    echo "GPU: $(nvidia-smi -i 0 --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv,noheader)"
    nvidia-smi && nvidia-smi -q -d CLOCK,POWER,TEMPERATURE
}
machine() { part machine 15 bash -c describe_machine; }

# Single instructions, recorded for the emulated device to be held to.
probes() {
    local set=()
    [ "$DEVICE" != cuda ] || set=(WARPSMITH_TEST_DEVICE=cuda "WARPSMITH_RECORD_PROBES=$OUT/golden")
    part probes 20 env "${set[@]}" "$BIN/probes" --test-threads 1
}

# Every kernel against the CPU device. One process a module: a fault of one, after which nothing works in its context, is then not laid
# to another. Those with the newest instructions first.
kernels() {
    local modules failed=0 module skip=()
    # The emulated device has them all in `cargo test`; here a few show that this step works.
    if [ -n "${KERNELS:-}" ]; then modules=$KERNELS
    elif [ "$DEVICE" != cuda ]; then modules="gelu reduce"
    else
        modules="matmul::hopper matmul_waves::hopper attention classifier layernorm encoder adamw"
        modules+=" $("$BIN/kernels" --list 2>/dev/null | sed -n 's/::.*: test$//p' | sort -u | grep -vwE "${modules// /|}|harness")"
        # They have had their turn.
        skip=(--skip hopper)
    fi
    for module in $modules; do
        # Whole names begin with the module's; a filter that is the beginning of a name counts as it is.
        case $module in
        *::*) set -- ;;
        *) module+=:: && set -- "${skip[@]}" ;;
        esac
        part "kernels-$(tr -s : - <<<"${module%::}")" 45 \
            env WARPSMITH_TEST_DEVICE="$DEVICE" "$BIN/kernels" --test-threads 1 "$module" "$@" || failed=1
    done
    return $failed
}

# Every kernel of GPT-2 124M by itself, checked at full size and timed, beside cuBLASLt and what is known of PyTorch.
bench() {
    local sizes="${SIZES:--e d12 -b 64 -t 1024} --reps 10" peers=()
    [ ! -s "$OUT/peers.json" ] || peers=(--peers "$OUT/peers.json")
    [ "$DEVICE" = cuda ] || { sizes="-e tiny -b 2 -t 64"; peers=(); }
    # shellcheck disable=SC2086
    part bench 85 "$BIN/bench" --bench --device "$DEVICE" $sizes --gelu-fusion 2 "${peers[@]}" --record "$OUT/record"
}

# corpus TOKENS: a folder of stories of that size.
corpus() {
    [ -e "$OUT/data/$1/stories_train_000001.bin" ] || "$BIN/warpsmith" stories -o "$OUT/data/$1" --tokens "$1" --force
}

# run TOKENS NAME PROGRAM FLAGS...: a run on the stories, its log of losses in OUT/run-NAME.
run() {
    local data=$OUT/data/$1 name=$2 program=$3
    shift 3
    corpus "$(basename "$data")" || return
    rm -rf "$OUT/run-$name"
    "$BIN/$program" -i "$data/*_train_*.bin" -j "$data/*_val_*.bin" -o "$OUT/run-$name" -v 0 -s 0 "$@"
}

# The losses of the CPU and of the device side by side, and how far apart the furthest are.
compare() {
    awk -v limit="$2" -v name="$1" '
        { split($2, loss, ":"); if (loss[1] != "trl") next }
        NR == FNR { want[$1] = loss[2]; next }
        $1 in want { off = loss[2] / want[$1] - 1; if (off < 0) off = -off; if (off > worst) worst = off
                     if (loss[2] !~ /^[0-9.]+$/ || off > limit) bad++; steps++
                     print $1, want[$1], loss[2] }
        END { printf "%s: %d steps, furthest apart %.2e, allowed %s\n", name, steps, worst, limit
              exit !(steps > 0 && bad == 0) }
    ' "$OUT/run-cpu/main.log" "$OUT/run-$1/main.log"
}

# The same twenty steps on the CPU and, in each type, on the device.
parity() {
    local shape="--layers 2 --heads 2 --channels 128 -b 2 -t 64 -x 20 -l 3e-4" failed=0 type allowed flags
    # 50,304 columns of logits are slow to emulate.
    [ "$DEVICE" = cuda ] || shape="--layers 1 --heads 1 --channels 32 -b 1 -t 16 -x 2 -l 3e-4"
    part parity-cpu 20 bash -c "run 200000 cpu train_gpt2 $shape" || return
    while read -r type allowed flags; do
        part "parity-$type" 20 bash -c "run 200000 $type train_gpt2cu --device $DEVICE --dtype $type $flags $shape && compare $type $allowed" ||
            failed=1
    done <<<$'f32 1e-4 -f 0\nbf16 1e-2\nfp16 5e-3'
    return $failed
}

time_steps() {
    [[ "$DEVICE $*" != emulated*cublaslt* ]] || { echo "the emulated device has no cuBLASLt"; return $ABSENT; }
    run "$@"
}

# The step that counts: GPT-2 124M, 64 x 1024 tokens eight times. First with the default flags, which choose kernels by measurement;
# then GELU apart and fused, products ours and cuBLASLt's. The parts and GRACE together are the step's limit.
train() {
    local tokens=6000000 shape="-e d12 -b 64 -t 1024 -d 524288 -r 0" failed=0 name seconds steps flags
    [ "$DEVICE" = cuda ] || { tokens=200000; shape="--layers 1 --heads 1 --channels 64 -b 1 -t 32"; }
    while read -r name seconds steps flags; do
        [ "$DEVICE" = cuda ] || { steps=2; flags=${flags/-lg 5/}; }
        part "train-$name" "$seconds" bash -c "time_steps $tokens d12-$name train_gpt2cu --device $DEVICE $shape -x $steps $flags" ||
            failed=1
    done <<<$'default 44 20 -lg 5\nge0 24 10 -ge 0\nge2 24 10 -ge 2\nown 24 10 -ge 2 --matmul own\ncublaslt 24 10 -ge 2 --matmul cublaslt'
    return $failed
}

has_torch() {
    "$PYTHON" -c 'import torch, numpy' 2>/dev/null || { echo "$PYTHON has no PyTorch; PYTHON names one that has"; return $ABSENT; }
}

# PyTorch's attention and the like by themselves.
time_peers() {
    has_torch || return
    local sizes="${SIZES:--e d12 -b 64 -t 1024} --reps 10"
    [ "$DEVICE" = cuda ] || sizes="-e tiny -b 2 -t 64 --reps 3 --device cpu"
    # shellcheck disable=SC2086
    "$PYTHON" dev/bench_attention.py $sizes --out "$OUT/peers.json"
}
peers() { part peers 35 bash -c time_peers; }

# Whole steps of ours and of PyTorch in turns: its fastest variant as it is commonly found, one round.
time_torch() {
    has_torch || return
    local tokens=6000000 ours="$BIN/train_gpt2cu -r 0" flags="-e d12 -b 64 -t 1024 -d 524288 --rounds 1 --steps 5"
    flags+=" --torch ${TORCH:-bf16-master:compile:cudnn}"
    if [ "$DEVICE" != cuda ]; then
        tokens=200000 ours=$BIN/train_gpt2
        flags="--device cpu --torch f32:eager -b 1 -t 32 --rounds 1 --steps 2 --layers 1 --heads 1 --channels 32"
    fi
    corpus $tokens || return
    # shellcheck disable=SC2086
    "$PYTHON" dev/bench.py --ours "$ours" $flags --data "$OUT/data/$tokens/stories_train_000001.bin" --record "$OUT/record"
}
torch() { part torch 110 bash -c time_torch; }

# A few tests that are short and reach far; racecheck takes longest and knows shared memory alone.
sanitizer() {
    local carried=$BIN/compute-sanitizer failed=0 tool tests
    if [ "$DEVICE" != cuda ]; then
        # It has a checker of its own, which kernel tests turn on.
        part sanitizer-emulated 15 env WARPSMITH_TEST_DEVICE=emulated "$BIN/kernels" --test-threads 1 gelu::
        return
    fi
    [ ! -d "$carried" ] || PATH=$(realpath "$carried"):$PATH
    while read -r tool tests; do
        # shellcheck disable=SC2086
        part "sanitizer-$tool" 15 bash -c 'command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer on this machine"; exit $ABSENT; }
            WARPSMITH_TEST_DEVICE=cuda exec compute-sanitizer --error-exitcode 1 --tool "$@"' \
            bash "$tool" "$BIN/kernels" --test-threads 1 ${KERNELS:-$tests} || failed=1
    done <<<$'memcheck hopper_tiles one_more_than_a_tile losses_and_gradients\nsynccheck hopper_tiles one_more_than_a_tile\nracecheck one_more_than_a_tile'
    return $failed
}

# --- from here on it runs

for step in $STEPS; do
    [[ " $ALL " == *" $step "* ]] || { echo "gpu_report: $step: expected one of: $ALL" >&2; exit 2; }
    [[ $(limit "$step") =~ ^[0-9]+$ ]] || { echo "gpu_report: LIMIT_$step=$(limit "$step"): expected seconds" >&2; exit 2; }
done
for program in probes kernels bench train_gpt2 train_gpt2cu warpsmith; do
    [ -x "$BIN/$program" ] || { echo "gpu_report: expected $BIN/$program; make gpu-report-programs builds it" >&2; exit 2; }
done
mkdir -p "$OUT"
# Programs look there for cuBLASLt and NCCL of PyTorch's packages.
[ -n "${VIRTUAL_ENV:-}" ] || VIRTUAL_ENV=$("$PYTHON" -c 'import sys; print(sys.prefix)' 2>/dev/null || true)
export VIRTUAL_ENV PYTHONUNBUFFERED=1
# Our programs log which kernel computes each product; the page shows it.
export WARPSMITH_LOG=${WARPSMITH_LOG:-info}
export OUT DEVICE BIN PYTHON ABSENT
export -f describe_machine corpus run time_steps compare has_torch time_peers time_torch

sum=0 text=
for step in $STEPS; do
    sum=$((sum + $(limit "$step"))) text+="${text:+, }$step $(limit "$step")"
done
echo "limits in seconds: $text; $sum in all"
failed=0
for step in $STEPS; do
    page=0 started=$SECONDS deadline=$((SECONDS + $(limit "$step")))
    # Left by an earlier run of the step.
    rm -f "$OUT/$step".{log,result,step} "$OUT/$step"-*.{log,result}
    if "$step"; then result=ok; else result=FAILED failed=1; fi
    grep -qsv '| absent |' "$OUT/$step".result "$OUT/$step"-*.result || result=absent
    printf '%s | %s | %s\n' "$step" "$result" $((SECONDS - started)) >"$OUT/$step.step"
    # The page too, so that a call that is cut off loses no more than the step it was in.
    dev/gpu_report_page.sh "$OUT" >"$OUT/page.log" 2>&1 || page=1
    save
done
cat "$OUT/page.log"
exit $((failed | page))
